"""Downloads against a local HTTP server that behaves well, badly, or not at all."""

import hashlib
import http.server
import io
import os
import sys
import threading

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.weights import download as downloads
from mrcnn.weights.download import fetch, resolve_weights

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT in the way the path says; keeps the paths it was asked for."""

    def log_message(self, *args):
        pass

    def do_GET(self):  # noqa: N802  (the name that http.server calls)
        server, kind = self.server, self.path.strip("/")
        server.requests.append(kind)
        if kind == "missing":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        cut = kind == "cut" or (kind == "cut_once" and len(server.requests) == 1)
        try:
            self.wfile.write(CONTENT[: len(CONTENT) // 2 if cut else None])
        except OSError:
            pass  # the client hung up, as some tests mean it to


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch, between attempts
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server, kind):
    return f"http://127.0.0.1:{server.server_address[1]}/{kind}"


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_good_file_is_downloaded_once_and_verified(server, tmp_path):
    path = tmp_path / "deep" / "weights.h5"
    for _ in range(2):
        assert fetch(url(server, "good"), MD5, path, quiet=True) == path
        assert path.read_bytes() == CONTENT
    assert server.requests == ["good"]
    assert os.listdir(path.parent) == ["weights.h5"]


def test_download_that_breaks_off_is_tried_again(server, tmp_path):
    path = tmp_path / "weights.h5"
    fetch(url(server, "cut_once"), MD5, path, quiet=True)
    assert path.read_bytes() == CONTENT and len(server.requests) == 2


@pytest.mark.parametrize(
    ("kind", "md5", "message"),
    [
        ("missing", MD5, "answers 404 Not Found; try again, or get the file elsewhere and put it"),
        ("cut", MD5, "cannot download .*IncompleteRead.*: connect to the network, or get the file"),
        ("good", "0" * 32, "is not the right file and was removed: its MD5 is not 0{32}; try"),
    ],
)
def test_failed_download_is_one_line_and_leaves_nothing(server, tmp_path, kind, md5, message):
    path = tmp_path / "weights.h5"
    with pytest.raises(UserError, match=message) as error:
        fetch(url(server, kind), md5, path, quiet=True)
    assert str(path) in one_line(error) and url(server, kind) in one_line(error)
    assert os.listdir(tmp_path) == [] and len(server.requests) == 3


def test_offline_says_where_to_put_the_file(server, tmp_path):
    server.shutdown()
    server.server_close()
    path = tmp_path / "weights.h5"
    with pytest.raises(
        UserError, match=r"cannot download .* \(Connection refused\).* put it at"
    ) as error:
        fetch(url(server, "good"), MD5, path, quiet=True)
    assert str(path) in one_line(error)


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="weights.h5: could not be written: ") as error:
        fetch(url(server, "good"), MD5, tmp_path / "file" / "weights.h5", quiet=True)
    one_line(error)


def test_file_put_by_hand_is_verified_and_kept(server, tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"not this")
    with pytest.raises(
        UserError, match="its MD5 is not .*; delete it to download it again"
    ) as error:
        fetch(url(server, "good"), MD5, path, quiet=True)
    one_line(error)
    assert path.read_bytes() == b"not this" and server.requests == []


def test_progress_counts_megabytes(server, tmp_path, capsys):
    fetch(url(server, "good"), MD5, tmp_path / "a.h5")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("a.h5, MB 1/3") and lines[-1].startswith("a.h5, MB 3/3")
    assert len(lines) == 2


def test_line_on_a_terminal_ends_where_a_download_breaks_off(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(UserError, match="IncompleteRead"):
        fetch(url(server, "cut"), MD5, tmp_path / "a.h5")
    assert "a.h5, MB" in sys.stderr.getvalue()
    assert sys.stderr.getvalue().endswith("\n")


# --- names -------------------------------------------------------------------------------------


@pytest.fixture
def coco_like(server, monkeypatch):
    """The server's file in the place of the COCO weights."""
    public = downloads.PublicFile(url(server, "mask_rcnn_coco.h5"), MD5)
    monkeypatch.setitem(downloads.PUBLIC_FILES, "coco", public)


def test_resolve_by_name_downloads_into_the_cache(server, coco_like, tmp_path, monkeypatch):
    monkeypatch.setenv("MRCNN_CACHE", str(tmp_path / "cache"))
    expected = str(tmp_path / "cache" / "mask_rcnn_coco.h5")
    assert resolve_weights("coco") == expected
    assert resolve_weights("COCO") == expected
    assert len(server.requests) == 1
    other = resolve_weights("coco", cache_dir=tmp_path / "other")
    assert other == str(tmp_path / "other" / "mask_rcnn_coco.h5")


def test_download_trained_weights_writes_to_the_given_path(coco_like, tmp_path, capfd):
    downloads.download_trained_weights(tmp_path / "here.h5", verbose=0)
    assert (tmp_path / "here.h5").read_bytes() == CONTENT
    assert capfd.readouterr().err == ""


def test_resolve_of_a_path(tmp_path):
    (tmp_path / "mine.h5").write_bytes(b"")
    assert resolve_weights(tmp_path / "mine.h5") == str(tmp_path / "mine.h5")
    with pytest.raises(
        UserError, match="no such weight file; give a path or one of nucleus, coco, "
    ):
        resolve_weights(tmp_path / "other.h5")


def test_public_files_are_those_of_matterport_and_keras():
    coco, imagenet = downloads.PUBLIC_FILES["coco"], downloads.PUBLIC_FILES["imagenet"]
    assert coco.url.startswith("https://github.com/matterport/Mask_RCNN/releases/")
    assert coco.md5 == "e98aaff6f99e307b5e2a8a3ff741a518"
    assert imagenet.url.endswith("resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5")
    assert imagenet.md5 == "a268eb855778b3df3c7506639542a6af"


def test_somebody_without_a_home_folder(monkeypatch):
    monkeypatch.delenv("MRCNN_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="no home folder.*MRCNN_CACHE"):
        resolve_weights("coco")
    with pytest.raises(UserError, match="~nobody/a.h5: no such weight file"):
        resolve_weights("~nobody/a.h5")


def test_a_pipe_is_no_weight_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(UserError, match="pipe.h5: not a regular file"):
        resolve_weights(tmp_path / "pipe.h5")
