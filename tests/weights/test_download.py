"""Downloads against a local HTTP server that behaves well, badly, or not at all."""

import errno
import hashlib
import http.server
import io
import os
import threading

import numpy as np
import pytest

from mrcnn.errors import UserError
from mrcnn.weights import download as downloads
from mrcnn.weights import legacy_h5
from mrcnn.weights.download import resolve_weights
from mrcnn.weights import transfer
from mrcnn.weights.transfer import download

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content` in the way the path says; keeps the requests it saw."""

    def log_message(self, *args):
        pass

    def do_GET(self):  # noqa: N802  (the name that http.server calls)
        server, kind = self.server, self.path.strip("/")
        asked = self.headers.get("Range")
        with server.guard:
            server.requests.append((kind, asked))
            first_time = len(server.requests) == 1
        content = server.content
        if kind == "missing":
            return self.send_error(404)
        if kind == "broken" or (kind == "broken_once" and first_time):
            return self.send_error(503)
        start = int(asked[len("bytes=") : -1]) if asked and kind != "no_range" else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cuts = kind == "always_cut" or (kind in ("cut", "no_range", "silent") and first_time)
        try:
            self.wfile.write(body[: max(1, len(body) // 2)] if cuts else body)
            self.wfile.flush()
            if cuts and kind == "silent" or kind == "dead":
                server.stop.wait(20)
        except OSError:
            pass  # the client hung up, as some tests mean it to


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.requests = CONTENT, []
    server.guard, server.stop = threading.Lock(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def url(server, kind):
    return f"http://127.0.0.1:{server.server_address[1]}/{kind}"


def visible(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_good_file_is_downloaded_once_and_verified(server, tmp_path):
    path = tmp_path / "deep" / "weights.h5"
    for _ in range(2):
        result = download(url(server, "good"), path, md5=MD5, size=len(CONTENT), quiet=True)
        assert result == path and path.read_bytes() == CONTENT
    assert server.requests == [("good", None)]
    assert visible(path.parent) == ["weights.h5"]


def test_truncated_download_goes_on_where_it_stopped(server, tmp_path):
    path = tmp_path / "weights.h5"
    download(url(server, "cut"), path, md5=MD5, quiet=True)
    assert path.read_bytes() == CONTENT
    assert server.requests == [("cut", None), ("cut", f"bytes={len(CONTENT) // 2}-")]


def test_part_of_an_earlier_run_is_completed(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(CONTENT[:1000])
    download(url(server, "good"), tmp_path / "weights.h5", md5=MD5, quiet=True)
    assert (tmp_path / "weights.h5").read_bytes() == CONTENT
    assert server.requests == [("good", "bytes=1000-")]
    assert visible(tmp_path) == ["weights.h5"]


def test_part_that_is_whole_already_is_taken(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(CONTENT)
    download(url(server, "good"), tmp_path / "weights.h5", md5=MD5, quiet=True)
    assert (tmp_path / "weights.h5").read_bytes() == CONTENT


def test_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(CONTENT + b"more")
    download(url(server, "good"), tmp_path / "weights.h5", md5=MD5, quiet=True)
    assert (tmp_path / "weights.h5").read_bytes() == CONTENT


def test_part_of_another_file_is_fetched_afresh(server, tmp_path):
    (tmp_path / "weights.h5.part").write_bytes(b"something else")
    download(url(server, "good"), tmp_path / "weights.h5", md5=MD5, quiet=True)
    assert (tmp_path / "weights.h5").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == ["bytes=14-", None]


def test_server_without_range_starts_over(server, tmp_path):
    path = tmp_path / "weights.h5"
    download(url(server, "no_range"), path, md5=MD5, quiet=True)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2 and server.requests[1][1] is not None


def test_corrupted_download_is_removed(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    path = tmp_path / "weights.h5"
    with pytest.raises(UserError, match="was removed: its MD5 is") as error:
        download(url(server, "good"), path, md5=MD5, quiet=True)
    assert str(path) in one_line(error)
    assert visible(tmp_path) == []


def test_download_of_another_size_is_removed(server, tmp_path):
    with pytest.raises(UserError, match="it has 300000 bytes, not 5") as error:
        download(url(server, "good"), tmp_path / "weights.h5", size=5, quiet=True)
    one_line(error)
    assert visible(tmp_path) == []


def test_silent_server_is_given_up_and_asked_again(server, tmp_path):
    path = tmp_path / "weights.h5"
    download(url(server, "silent"), path, md5=MD5, timeout=0.3, quiet=True)
    assert path.read_bytes() == CONTENT
    assert server.requests[1][1] == f"bytes={len(CONTENT) // 2}-"


def test_connection_that_always_breaks_keeps_its_part(server, tmp_path):
    path = tmp_path / "weights.h5"
    with pytest.raises(UserError, match="broke off .* run again to go on from there") as error:
        download(url(server, "always_cut"), path, md5=MD5, retries=2, quiet=True)
    assert str(path) in one_line(error)
    assert len(server.requests) == 3
    part = (tmp_path / "weights.h5.part").read_bytes()
    assert CONTENT.startswith(part) and len(part) > len(CONTENT) // 2

    download(url(server, "good"), path, md5=MD5, quiet=True)
    assert path.read_bytes() == CONTENT


def test_not_found_is_not_tried_again(server, tmp_path):
    path = tmp_path / "weights.h5"
    with pytest.raises(UserError, match="answers 404 Not Found") as error:
        download(url(server, "missing"), path, quiet=True)
    assert str(path) in one_line(error)
    assert len(server.requests) == 1 and visible(tmp_path) == []


def test_server_error_is_tried_again(server, tmp_path):
    download(url(server, "broken_once"), tmp_path / "a.h5", md5=MD5, timeout=0.2, quiet=True)
    with pytest.raises(UserError, match="answers 503"):
        download(url(server, "broken"), tmp_path / "b.h5", timeout=0.2, retries=1, quiet=True)
    assert len(server.requests) == 4


def test_offline_says_where_to_put_the_file(server, tmp_path):
    server.shutdown()
    server.server_close()
    path = tmp_path / "weights.h5"
    with pytest.raises(UserError, match="cannot reach .*put it at") as error:
        download(url(server, "good"), path, quiet=True)
    assert str(path) in one_line(error)


def test_file_put_by_hand_is_verified_and_kept(server, tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(b"not this")
    with pytest.raises(UserError, match="delete it to download it again") as error:
        download(url(server, "good"), path, md5=MD5, quiet=True)
    one_line(error)
    assert path.read_bytes() == b"not this" and server.requests == []


def test_two_downloads_at_once_make_one_whole_file(server, tmp_path):
    path = tmp_path / "weights.h5"
    errors = []

    def fetch():
        try:
            download(url(server, "cut"), path, md5=MD5, quiet=True)
        except Exception as error:  # seen in the main thread
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 2  # one that was cut, one for the rest; the others waited


def test_progress_bar_on_a_terminal_and_plain_lines_elsewhere(server, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, plain = Terminal(), io.StringIO()
    download(url(server, "good"), tmp_path / "a.h5", stream=terminal)
    download(url(server, "good"), tmp_path / "b.h5", stream=plain)
    last = terminal.getvalue().split("\r")[-1]
    assert "[####################]  100 %  0.3 of 0.3 MB" in last and last.endswith("\n")
    assert "ETA 0:00" in last
    assert plain.getvalue().startswith("b.h5  100 %") and "\r" not in plain.getvalue()


def test_file_systems_without_locks(server, tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(transfer.fcntl, "flock", refuse)
    assert download(url(server, "good"), tmp_path / "a.h5", md5=MD5, quiet=True).is_file()


# --- names -------------------------------------------------------------------------------------


@pytest.fixture
def coco_like(server, monkeypatch, tmp_path):
    """The server has a small file with 81 classes in the place of the COCO weights."""
    arrays = {"mrcnn_class_logits": {"kernel": np.zeros((4, 81), np.float32)}}
    legacy_h5.write(tmp_path / "source.h5", arrays, keras_version="2.2.4")
    server.content = (tmp_path / "source.h5").read_bytes()
    public = downloads.PublicFile(
        url(server, "mask_rcnn_coco.h5"), None, len(server.content), 81
    )
    monkeypatch.setitem(downloads.PUBLIC_FILES, "coco", public)
    return public


def test_resolve_by_name_downloads_into_the_cache(server, coco_like, tmp_path, monkeypatch):
    monkeypatch.setenv("MRCNN_CACHE", str(tmp_path / "cache"))
    expected = str(tmp_path / "cache" / "mask_rcnn_coco.h5")
    assert resolve_weights("coco") == expected
    assert resolve_weights("COCO") == expected
    assert len(server.requests) == 1
    other = resolve_weights("coco", cache_dir=tmp_path / "other")
    assert other == str(tmp_path / "other" / "mask_rcnn_coco.h5")


def test_structure_is_verified_where_there_is_no_checksum(server, coco_like, tmp_path, monkeypatch):
    monkeypatch.setitem(downloads.PUBLIC_FILES, "coco", coco_like._replace(classes=5))
    with pytest.raises(UserError, match="it has 81 classes, not 5") as error:
        resolve_weights("coco", tmp_path / "cache")
    one_line(error)
    assert visible(tmp_path / "cache") == []


def test_download_trained_weights_writes_to_the_given_path(coco_like, tmp_path, capfd):
    downloads.download_trained_weights(tmp_path / "here.h5", verbose=0)
    assert (tmp_path / "here.h5").stat().st_size == coco_like.size
    assert capfd.readouterr().err == ""


def test_resolve_of_a_path(tmp_path):
    (tmp_path / "mine.h5").write_bytes(b"")
    assert resolve_weights(tmp_path / "mine.h5") == str(tmp_path / "mine.h5")
    with pytest.raises(UserError, match="no such weight file; give a path or one of nucleus, coco, "):
        resolve_weights(tmp_path / "other.h5")


def test_public_files_are_those_of_matterport_and_keras():
    coco, imagenet = downloads.PUBLIC_FILES["coco"], downloads.PUBLIC_FILES["imagenet"]
    assert coco.url.startswith("https://github.com/matterport/Mask_RCNN/releases/")
    assert (coco.size, coco.classes) == (257557808, 81)
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
