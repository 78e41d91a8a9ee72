"""Weight files from strangers: damage, links, sizes; and a disk that is full."""

import fcntl
import os
import re
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.weights import legacy_h5
from tests.support.weight_arrays import read_weights


def write(path, **layers):
    """A weight file with a kernel of each of these layers."""
    arrays = {name: {"kernel": np.asarray(a, np.float32)} for name, a in layers.items()}
    legacy_h5.write(path, arrays or {"conv1": {"kernel": np.ones((2, 3))}}, keras_version="3")
    return path


def named(file, names):
    del file.attrs["layer_names"]
    file.attrs["layer_names"] = names


def tensor(file, make):
    """Replace the only tensor of a file by what `make(group, name)` puts there."""
    del file["conv1"]["conv1/kernel:0"]
    make(file["conv1"], "conv1/kernel:0")


DAMAGE = {
    "names that are no text": lambda file: named(file, np.array([b"\xff\xfe"])),
    "names that are numbers": lambda file: named(file, np.arange(3)),
    "one name, not a list": lambda file: named(file, 7),
    "a layer that is not there": lambda file: named(file, np.array([b"conv2"])),
    "more names than a network has": lambda file: named(file, np.array([b"conv1"] * 10_001)),
    "a tensor without numbers": lambda file: tensor(
        file, lambda group, name: group.create_dataset(name, data=b"text")
    ),
    "a tensor without values": lambda file: tensor(
        file, lambda group, name: group.create_dataset(name, data=h5py.Empty("f"))
    ),
    "a group for a tensor": lambda file: tensor(
        file, lambda group, name: group.create_group(name)
    ),
    "a tensor in parts larger than itself": lambda file: tensor(
        file,
        lambda group, name: group.create_dataset(
            name, (2, 3), "f4", maxshape=(None, None), chunks=(2**14, 2**14), compression="gzip"
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_wrong_inside_is_one_line_with_the_file(tmp_path, kind):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        DAMAGE[kind](file)
    with pytest.raises(UserError, match=re.escape(str(path))) as error:
        legacy_h5.read_shapes(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_flipped_bits_are_damage_or_other_numbers(tmp_path, rng):
    path = write(tmp_path / "a.h5", conv1=np.ones((4, 4)), mrcnn_mask=np.ones((3, 3)))
    whole = np.fromfile(path, np.uint8)
    for _ in range(60):
        changed = whole.copy()
        changed[rng.integers(len(whole), size=8)] ^= np.uint8(1) << rng.integers(8, dtype=np.uint8)
        changed.tofile(tmp_path / "b.h5")
        try:
            read_weights(tmp_path / "b.h5")
        except UserError as error:
            assert "b.h5" in str(error) and "\n" not in str(error)


def outside(tmp_path, kind):
    """A weight file whose tensor is in another file, that of a secret."""
    secret = write(tmp_path / "secret.h5")
    path = write(tmp_path / "a.h5")
    (tmp_path / "secret.raw").write_bytes(np.ones(6, "f4").tobytes())

    def make(group, name):
        if kind == "external link":
            group[name] = h5py.ExternalLink(str(secret), "conv1/conv1/kernel:0")
        elif kind == "soft link":
            group.file["way"] = h5py.ExternalLink(str(secret), "conv1")
            group[name] = h5py.SoftLink("/way/conv1/kernel:0")
        elif kind == "external storage":
            storage = [(str(tmp_path / "secret.raw"), 0, 24)]
            group.create_dataset(name, (2, 3), "f4", external=storage)
        else:
            layout = h5py.VirtualLayout((2, 3), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "conv1/conv1/kernel:0", shape=(2, 3))
            group.create_virtual_dataset(name, layout)

    with h5py.File(path, "r+") as file:
        tensor(file, make)
        way = file["conv1/conv1/kernel:0"][()]
    assert way.shape == (2, 3) and (way == 1).all()  # HDF5 alone follows it
    return path


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "external storage", "virtual data set"]
)
def test_no_other_file_is_read(tmp_path, kind):
    with pytest.raises(UserError, match="not followed|lie in other files"):
        read_weights(outside(tmp_path, kind))


def test_a_layer_that_is_a_link_is_refused(tmp_path):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        named(file, np.array([b"way"]))
        file["way"] = h5py.ExternalLink(str(write(tmp_path / "secret.h5")), "conv1")
    with pytest.raises(UserError, match="way is a link elsewhere: links are not followed"):
        legacy_h5.read_shapes(path)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "link.h5").symlink_to(tmp_path / "pipe.h5")
    for name in ("pipe.h5", "link.h5"):
        with pytest.raises(UserError, match=f"{name}: not a regular file"):
            legacy_h5.read_shapes(tmp_path / name)


def test_files_are_read_where_others_hold_a_lock(tmp_path):
    # As on network file systems that refuse locks.
    path = write(tmp_path / "a.h5")
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert legacy_h5.read_shapes(path) == {"conv1": {"kernel": (2, 3)}}


@pytest.mark.parametrize("kind", ["cut", "empty", "overwritten"])
def test_a_damaged_checkpoint_names_the_whole_one_beside_it(tmp_path, kind):
    for epoch in (7, 8, 10):
        write(tmp_path / f"mask_rcnn_cell_{epoch:04d}.h5")
    write(tmp_path / "mask_rcnn_other_0011.h5")
    (tmp_path / "mask_rcnn_cell_0009.h5").write_bytes(b"\x89HDF\r\n\x1a\n")  # a damaged one as well
    path = tmp_path / "mask_rcnn_cell_0010.h5"
    contents = path.read_bytes()
    path.write_bytes({"cut": contents[:-100], "empty": b"", "overwritten": b"\0" * 500}[kind])
    with pytest.raises(UserError, match="is a checkpoint that is damaged or incomplete") as error:
        legacy_h5.read_shapes(path)
    message = str(error.value)
    assert f"resume from {tmp_path / 'mask_rcnn_cell_0008.h5'}" in message
    assert "again" not in message and "\n" not in message


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path):
    path = write(tmp_path / "a.h5")
    before = path.read_bytes()
    program = """
        import resource, signal, sys
        import numpy as np
        from mrcnn.errors import UserError
        from mrcnn.weights import legacy_h5
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        kernel = np.random.default_rng(0).standard_normal((300, 400))
        try:
            arrays = {"conv1": {"kernel": kernel}}
            legacy_h5.write(sys.argv[1], arrays, keras_version="3", half=True)
        except UserError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{path}: could not be written: ")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.h5"]
