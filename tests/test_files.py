"""Only regular files are opened."""

import os

import pytest

from mrcnn.errors import MissingFileError, UserError
from mrcnn.files import open_regular, other_kind, require_regular


def test_regular_files_and_links_to_them_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):
        assert require_regular(tmp_path / name) == tmp_path / name
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"abc"


@pytest.mark.timeout(20)
def test_pipes_devices_folders_and_what_is_absent_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, kind in (("pipe", "named pipe"), ("link", "named pipe"), ("", "folder")):
        with pytest.raises(UserError, match=f"not a regular file, but a {kind}"):
            open_regular(tmp_path / name)
    with pytest.raises(UserError, match="/dev/zero: not a regular file, but a device"):
        open_regular("/dev/zero")
    with pytest.raises(MissingFileError, match="no such file"):
        open_regular(tmp_path / "absent")
    with pytest.raises(UserError, match="loop: cannot be read"):
        open_regular(tmp_path / "loop")
    assert other_kind(tmp_path) == "a folder"


def test_every_refusal_is_one_short_line():
    for path in ("none", "a\0b", "a\nb", "x" * 9999):
        with pytest.raises(UserError) as error:
            require_regular(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_no_more_is_asked_of_a_file_than_it_has(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    with open_regular(tmp_path / "a") as file:
        assert file.read(4) == b"0123" and file.read(2**62) == b"456789" and file.read(9) == b""
        file.seek(2)
        assert file.read() == b"23456789"
