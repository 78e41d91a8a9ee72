"""Decoded images on disk: never stale, never half, and no harm where the folder is no good."""

import multiprocessing
import os
import warnings

import numpy as np
import pytest

from mrcnn.config import Config
from mrcnn.data import disk_cache
from mrcnn.data.disk_cache import DiskCache, cache_entry
from mrcnn.errors import MRCNNWarning, UserError
from tests.support.reference_data import SquaresDataset

NAME, KEY = "image.npz", "1 some-state"


def some_arrays(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    layers = rng.integers(0, 300, (40, 50, 2)).astype(np.uint16)
    return image, layers, np.ones(300, np.int32)


def assert_same(stored, arrays):
    assert len(stored) == len(arrays)
    for one, two in zip(stored, arrays, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def test_what_is_stored_comes_back(tmp_path):
    cache = DiskCache(tmp_path / "made" / "here")
    assert cache.get(NAME, KEY) is None
    cache.put(NAME, KEY, some_arrays())
    assert_same(DiskCache(tmp_path / "made" / "here").get(NAME, KEY), some_arrays())
    assert os.listdir(cache.folder) == [NAME]


def test_no_pickle(tmp_path):
    cache = DiskCache(tmp_path)
    cache.put(NAME, KEY, some_arrays())
    with np.load(tmp_path / NAME, allow_pickle=False) as stored:
        assert sorted(stored) == ["class_ids", "image", "key", "layers"]
    np.savez(tmp_path / NAME, key=np.array(KEY), image=np.array([{}], object))
    assert cache.get(NAME, KEY) is None


def test_another_key_is_stale_and_replaced(tmp_path):
    cache = DiskCache(tmp_path)
    cache.put(NAME, KEY, some_arrays(0))
    assert cache.get(NAME, "1 other-state") is None
    cache.put(NAME, "1 other-state", some_arrays(1))
    assert cache.get(NAME, KEY) is None
    assert_same(cache.get(NAME, "1 other-state"), some_arrays(1))
    assert os.listdir(tmp_path) == [NAME]


def test_files_cut_short_anywhere_count_as_absent(tmp_path):
    cache = DiskCache(tmp_path)
    cache.put(NAME, KEY, some_arrays())
    whole = (tmp_path / NAME).read_bytes()
    for length in [*range(0, len(whole), 397), len(whole) - 1]:
        (tmp_path / NAME).write_bytes(whole[:length])
        assert cache.get(NAME, KEY) is None, length
    cache.put(NAME, KEY, some_arrays())
    assert_same(cache.get(NAME, KEY), some_arrays())


def test_damaged_files_never_give_other_arrays(tmp_path):
    """Some bytes of a zip file, such as dates, matter to nobody: then the arrays are right."""
    cache = DiskCache(tmp_path)
    cache.put(NAME, KEY, some_arrays())
    whole = (tmp_path / NAME).read_bytes()
    refused = 0
    for place in range(0, len(whole), 101):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        (tmp_path / NAME).write_bytes(damaged)
        stored = cache.get(NAME, KEY)
        refused += stored is None
        if stored is not None:
            assert_same(stored, some_arrays())
    assert refused > 0.9 * len(range(0, len(whole), 101))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"rubbish" * 99])
def test_other_files_count_as_absent(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    assert DiskCache(tmp_path).get(NAME, KEY) is None


def test_arrays_that_do_not_fit_together_count_as_absent(tmp_path):
    cache, (image, layers, class_ids) = DiskCache(tmp_path), some_arrays()
    for wrong in (
        (image, layers[:-1], class_ids),
        (image, layers, class_ids[:100]),
        (image, layers.astype(float), class_ids),
        (image, layers, class_ids * 1.5),
    ):
        cache.put(NAME, KEY, wrong)
        assert cache.get(NAME, KEY) is None


def test_a_named_pipe_counts_as_absent(tmp_path):
    os.mkfifo(tmp_path / NAME)
    assert DiskCache(tmp_path).get(NAME, KEY) is None


def test_a_folder_that_takes_no_files_is_reported_once(tmp_path):
    """A folder in the file's place refuses to be replaced, for the superuser too."""
    cache = DiskCache(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.warns(MRCNNWarning, match="CACHE_DIR: .*image.npz: could not be written"):
        cache.put(NAME, KEY, some_arrays())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(NAME, KEY, some_arrays())
        cache.put("other.npz", KEY, some_arrays())
    assert os.listdir(tmp_path) == [NAME]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    real_open = open

    def open_full(path, mode):
        assert mode == "wb"
        real_open(path, mode).close()
        return real_open("/dev/full", mode)  # a real file that refuses every byte

    monkeypatch.setattr(disk_cache, "open", open_full, raising=False)
    with pytest.warns(MRCNNWarning, match="No space left on device; no more images are stored"):
        DiskCache(tmp_path).put(NAME, KEY, some_arrays())
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="CACHE_DIR = .*not a folder"):
            DiskCache(folder)


def _write_often(folder, seed):
    cache = DiskCache(folder)
    for _ in range(30):
        cache.put(NAME, KEY, some_arrays(seed))
    if not cache.writable:
        raise AssertionError("a write failed")


def test_processes_may_share_a_folder(tmp_path):
    """Two processes write the same file over and over: readers see one of the two, whole."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_often, args=(tmp_path, seed)) for seed in (0, 1)]
    for writer in writers:
        writer.start()
    cache, seen = DiskCache(tmp_path), 0
    while any(writer.is_alive() for writer in writers):
        stored = cache.get(NAME, KEY)
        assert stored is not None or seen == 0  # once there, always there
        if stored is not None:
            seen += 1
            assert_same(stored, some_arrays(0 if (stored[0] == some_arrays(0)[0]).all() else 1))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen and os.listdir(tmp_path) == [NAME]


class Known(SquaresDataset):
    def fingerprint(self, image_id):
        return f"state of {image_id}"


class Derived(Known):
    pass


def test_every_image_has_its_own_file(tmp_path):
    one, two = Known([(20, 20)] * 3), Derived([(20, 20)] * 3)
    two.image_info[1]["path"] = "elsewhere.png"
    forms = (
        {"IMAGE_CHANNEL_COUNT": 1},
        {},
        {"DARK_GROUND": True},
        {"INTENSITY_PERCENTILES": (1, 99)},
    )
    configs = [type("Form", (Config,), form)() for form in forms]
    entries = [cache_entry(d, i, c) for d in (one, two) for i in range(3) for c in configs]
    names = {name for name, _ in entries}
    assert len(names) == 24 and all(name.endswith(".npz") for name in names)
    assert entries == [cache_entry(d, i, c) for d in (one, two) for i in range(3) for c in configs]


def test_the_same_image_in_another_state_keeps_its_file():
    dataset = Known([(20, 20)])
    name, key = cache_entry(dataset, 0, Config())
    dataset.fingerprint = lambda image_id: "another state"
    assert cache_entry(dataset, 0, Config())[0] == name
    assert cache_entry(dataset, 0, Config())[1] != key
    dataset.fingerprint = lambda image_id: None
    assert cache_entry(dataset, 0, Config()) is None
