"""The report as a file that is read back, and as a page in a browser (skipped where there is none).

The browser gets real clicks, keys and wheels through Chromium's debugging pipe.
"""

import base64
import hashlib
import io
import itertools
import json
import os
import re
import select
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon2mask
from skimage.measure import approximate_polygon, find_contours

from mrcnn.errors import UserError
from mrcnn.evaluation.evaluation import Evaluation
from mrcnn.results import report
from mrcnn.results.report import ReportWriter
from mrcnn.results.result_files import measurements
from samples.nucleus.kinds import KINDS_OF_IMAGES

HOSTILE = "</script><img src=x onerror=\"document.title='harmed'\"><!--<script>&amp;"
NUCLEI = ("nucleus", "nuclei")


def discs(rng, count, side=64):
    """A label map of up to `count` discs side by side, and an image of it."""
    y, x = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.int32)
    for label in range(1, count + 1):
        row, column = divmod(label - 1, side // 16)
        distance = np.hypot(y - 16 * row - 8, x - 16 * column - 8)
        labels[distance < rng.uniform(3, 7)] = label
    image = np.where(labels[..., None] > 0, 200, 30) + rng.integers(-20, 20, (side, side, 3))
    return labels, image.astype(np.uint8)


def add_discs(writer, rng, name, count, **more):
    labels, image = discs(rng, count)
    table = measurements(labels, rng.uniform(0.5, 1, count), image, writer.microns)
    writer.add(name, image, labels, table, **more)
    return table


class Page(HTMLParser):
    """The tags of a page, and the data in it by id."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags, self.data, self.title, self._open = [], {}, "", None
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open = self.tags[-1]

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, text):
        tag, attributes = self._open or ("", {})
        if attributes.get("type") == "application/json":
            self.data[attributes["id"]] = json.loads(text)
        elif tag == "title":
            self.title += text

    @property
    def report(self):
        return self.data["report"]


# --- the file -----------------------------------------------------------------------------


def test_the_file_needs_no_other(rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {"Weights": "nucleus"})
    add_discs(writer, rng, "a", 5, link="a.png")
    writer.close(True)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    page = Page(tmp_path / "index.html")
    for tag, attributes in page.tags:
        assert tag not in {"img", "link", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    # The only address is the name of a format.
    assert set(re.findall(r"\w+://[^\"\s]*", page.text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page.text and "@import" not in page.text


def test_the_policy_allows_nothing_but_the_page_itself(tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    writer.close(True)
    text = (tmp_path / "index.html").read_text()
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for name in ("script", "style"):
        [content] = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"


def test_foreign_text_stays_text(rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", HOSTILE, {HOSTILE: HOSTILE})
    clean = ReportWriter(tmp_path / "clean.html", "Run", {"Weights": "nucleus"})
    for one, name in ((writer, HOSTILE), (clean, "a")):
        add_discs(one, rng, name, 2, row={"score": 0.5, "kind": name})
        one.add_failed(name, name)
        one.close(False)
    page = Page(tmp_path / "index.html")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in Page(clean.path).tags]
    assert page.title == page.report["title"] == HOSTILE
    assert page.report["facts"] == [[HOSTILE, HOSTILE]]
    assert page.report["failed"] == [{"name": HOSTILE, "reason": HOSTILE}]
    assert page.report["images"][0]["name"] == page.report["images"][0]["kind"] == HOSTILE


def test_names_that_are_not_unicode(rng, tmp_path):
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")
    writer = ReportWriter(tmp_path / "index.html", broken, {})
    add_discs(writer, rng, broken, 1, link=f"{broken}.png")
    writer.close(True)
    page = Page(tmp_path / "index.html")
    assert page.title == "caf?"
    assert page.report["images"][0]["name"] == broken
    assert page.report["images"][0]["link"] == "./caf%E9.png"


@pytest.mark.parametrize(
    "link, url",
    [
        ("a.png", "./a.png"),
        ("plate 1/b#2.png", "./plate%201/b%232.png"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("http://x.org", "./http%3A//x.org"),
        ("//x.org/a.png", ".///x.org/a.png"),
    ],
)
def test_links_stay_relative(link, url):
    assert report.relative_url(link) == url


@pytest.mark.parametrize("microns", [None, 0.5])
def test_numbers_are_those_of_the_tables(rng, tmp_path, microns):
    writer = ReportWriter(tmp_path / "index.html", "Run", {}, microns, nouns=NUCLEI)
    tables = [add_discs(writer, rng, f"{count}", count) for count in (9, 1, 4)]
    writer.close(True)
    page = Page(writer.path)
    areas = np.concatenate([table["area"] for table in tables])
    assert page.report["instances"] == 14 and page.report["microns"] == microns
    assert page.report["median_area"] == np.median(areas)
    assert page.report["kind"] == "detect" and page.report["nouns"] == list(NUCLEI)
    for index, (image, table) in enumerate(zip(page.report["images"], tables, strict=True)):
        assert image["count"] == len(table) == int(image["name"])
        assert image["area"] == table["area"].median()
        assert image["confidence"] == pytest.approx(table["score"].mean())
        assert image["covered"] == table["area"].sum() / 64**2
        rows = page.data[f"image-{index}"]["rows"]
        np.testing.assert_allclose(rows, table[page.report["columns"]], rtol=1e-3)
    histograms = page.report["histograms"]
    assert histograms["area"]["median"] == np.median(areas) * (1 if microns is None else 0.25)
    assert [sum(histograms[name]["counts"]) for name in ("count", "area", "confidence")] == [
        3,
        14,
        14,
    ]
    assert histograms["score"] is None


def test_without_images(tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    writer.add_failed("a", "not an image")
    writer.close(True, {})
    found = Page(writer.path).report
    assert found["images"] == [] and found["instances"] == 0 and found["median_area"] is None
    assert set(found["histograms"].values()) == {None}
    assert found["failed"] == [{"name": "a", "reason": "not an image"}]


def test_images_without_instances_and_without_scores(rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    add_discs(writer, rng, "empty", 0)
    labels, image = discs(rng, 3)
    writer.add("no scores", image, labels, measurements(labels, None, image))
    writer.close(True)
    page = Page(writer.path)
    empty, other = page.report["images"]
    assert (empty["count"], empty["confidence"], empty["area"], empty["covered"]) == (
        0,
        None,
        None,
        0,
    )
    assert page.data["image-0"]["outlines"] == page.data["image-0"]["rows"] == []
    assert other["count"] == 3 and other["confidence"] is None
    assert [row[1] for row in page.data["image-1"]["rows"]] == [None] * 3
    assert page.report["histograms"]["confidence"] is None


def test_an_interrupted_run_has_a_report_of_what_was_done(rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    (tmp_path / "index.html").write_text("an older report")
    add_discs(writer, rng, "a", 3)
    assert (tmp_path / "index.html").read_text() == "an older report"
    assert writer.partial.stat().st_size > 1000  # on disk at once
    writer.close(False)
    page = Page(writer.path)
    assert page.report["complete"] is False and len(page.report["images"]) == 1
    assert not writer.partial.exists()


def test_half_an_image_is_left_out(rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    add_discs(writer, rng, "a", 3)
    with open(writer.partial, "ab") as file:  # as a full disk leaves it
        file.write(writer.partial.read_bytes()[:900])
    writer.close(False)
    assert list(Page(writer.path).data) == ["image-0", "report"]


def test_a_folder_that_cannot_be_written(rng, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="index.html: cannot be written"):
        ReportWriter(tmp_path / "file" / "index.html", "Run", {})
    writer = ReportWriter(tmp_path / "run" / "index.html", "Run", {})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match="index.html: cannot be written"):
        add_discs(writer, rng, "a", 3)
    (tmp_path / "run").write_text("")
    writer.close(False)  # has an error of its own to tell
    with pytest.raises(UserError, match="index.html: cannot be written"):
        writer.close(True)


def test_only_the_first_rows_of_long_tables(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_ROWS", 4)
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    table = add_discs(writer, rng, "a", 9)
    writer.close(True)
    data = Page(writer.path).data["image-0"]
    assert [row[0] for row in data["rows"]] == table["label"].tolist()[:4]
    assert len(data["outlines"]) == 9


def test_an_evaluation(rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {}, kind="evaluate")
    evaluation = Evaluation(KINDS_OF_IMAGES)
    for name, count in (("a", 9), ("b", 4)):
        truth, image = discs(rng, count)
        labels = np.where(truth > 1, np.roll(truth, 1, axis=0), 0)
        scores = np.linspace(1, 0.5, count - 1)
        layers = np.stack([truth, np.where(truth == 1, 1, 0)], axis=-1)
        row = evaluation.add(name, image, layers, labels, scores)
        writer.add(name, image, labels, measurements(labels, scores, image), layers, row)
    writer.close(True, evaluation.summary())
    page = Page(writer.path)
    assert page.report["summary"] == evaluation.summary()
    for shown, row in zip(page.report["images"], evaluation.rows, strict=True):
        for name in ("score", "kind", "true", "detected", "ap_50", "f1_50"):
            assert shown[name] == row[name]
    assert sum(page.report["histograms"]["score"]["counts"]) == 2
    data = page.data["image-0"]
    assert len(data["outlines"]) == 8 and data["truth"].count("M") == 9 + 1


def test_numbers_that_json_does_not_have(tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {}, kind="evaluate")
    writer.close(True, Evaluation(KINDS_OF_IMAGES).summary())  # full of NaN
    assert Page(writer.path).report["summary"]["score"] is None


# --- images and outlines ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 60), (1500, 900), (3, 2000)])
def test_images_fit_the_budget(rng, shape):
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    data, (height, width) = report.encode_image(image)
    assert len(data) <= report.JPEG_BYTES and max(height, width) <= report.LARGEST_SIDE
    shown = Image.open(io.BytesIO(data))
    assert shown.format == "JPEG" and shown.size == (width, height)
    if max(shape) < 100:
        assert (height, width) == shape


def test_dark_images_are_brightened():
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:40, 20:40] = 30
    data, _ = report.encode_image(image)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    assert decoded[30, 30].mean() == pytest.approx(220, abs=3) and decoded[5, 5].mean() < 3


def points(path):
    """The rings [V, 2] (x, y) of an SVG path of M, l and z."""
    for ring in re.findall(r"M([^z]*)z", path):
        start, steps = (
            np.array(re.findall(r"-?\d+", part), int).reshape(-1, 2) for part in ring.split("l")
        )
        yield np.cumsum(np.concatenate([start, steps]), axis=0)


@pytest.mark.parametrize("size", [1, 0.5])
def test_outlines_cover_their_instances(rng, size):
    labels, _ = discs(rng, 16)
    labels[labels == 3] = 0  # a number that does not occur
    labels[5:11, 5:11] = 0  # a hole in the first
    shape = (int(64 * size), int(64 * size))
    paths = report.outline_paths(labels, shape)
    for label, path in zip(np.unique(labels)[1:], paths, strict=True):
        covered = np.zeros((64, 64), bool)
        for ring in points(path):
            # Half pixels of the image; polygon2mask has whole numbers in the middle of pixels.
            covered ^= polygon2mask((64, 64), ring[:, ::-1] / 2 / size - 0.5)
        mask = labels == label
        assert (covered & mask).sum() / (covered | mask).sum() > (0.9 if size == 1 else 0.75)


def test_an_outline_reaches_the_edges_of_the_image():
    labels = np.ones((8, 12), np.int32)
    [path] = report.outline_paths(labels, labels.shape)
    [ring] = points(path)
    assert ring.min(axis=0).tolist() == [0, 0] and ring.max(axis=0).tolist() == [24, 16]


def test_tiny_instances_keep_a_dot():
    labels = np.zeros((400, 400), np.int32)
    labels[100, 100], labels[300:302, 200] = 1, 2
    for path in report.outline_paths(labels, (40, 40)):
        [ring] = points(path)
        assert len(np.unique(ring, axis=0)) >= 3


def test_simplified_as_scikit_image_does_it(rng):
    labels, _ = discs(rng, 16)
    for label in range(1, 17):
        [ring] = find_contours(labels == label, 0.5)
        found = report.simplified(ring, 0.4)
        reference = approximate_polygon(ring, 0.4)
        # Of several points at the same distance, either may take another.
        assert len(ring) > len(found) and abs(len(found) - len(reference)) <= 2
        ends = zip(found[:-1], found[1:], strict=True)
        distances = np.min([distance_to_line(ring, *pair) for pair in ends], axis=0)
        assert distances.max() <= 0.4 + 1e-9


def distance_to_line(points, start, end):
    """Distance of each point [V, 2] from the nearest place between start and end."""
    direction = end - start
    share = np.clip((points - start) @ direction / (direction @ direction), 0, 1)
    return np.linalg.norm(start + share[:, None] * direction - points, axis=1)


def test_detailed_images_stay_small(rng, tmp_path):
    """What the module promises of 512x512 pixels with 150 instances: less than 60 kB."""
    labels, _ = discs(rng, 144, 192)
    labels = labels.repeat(3, axis=0).repeat(3, axis=1)[:512, :512]
    image = rng.integers(0, 256, (512, 512, 3), np.uint8)
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    writer.add("a", image, labels, measurements(labels, None, image))
    assert writer.partial.stat().st_size < 60_000


# --- histograms ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, whole, most",
    [
        ([0], True, None),
        ([3, 3, 3], True, None),
        (range(30), True, None),
        ([1] * 200 + [5000], True, None),
        ([0.3, 0.1, 0.2], False, None),
        ([1.0], False, 1.0),
        ([0.5, 0.65, 0.7, 1.0, 1.0], False, 1.0),
        ([0.0, 0.0], False, None),
        (np.linspace(20, 900, 777), False, None),
    ],
)
def test_histogram(values, whole, most):
    values = np.array(values, float)
    found = report.histogram(values, whole, most)
    edges, counts = np.array(found["edges"]), found["counts"]
    assert len(counts) == len(edges) - 1 and len(counts) <= report.MOST_BARS + 2
    for number, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        last = number == len(counts) - 1
        assert counts[number] == sum(low <= v and (last or v < high) for v in values)
    assert sum(counts) == len(values) and found["median"] == np.median(values)
    step = edges[1] - edges[0]
    assert f"{step:.0e}"[0] in "125" and (not whole or step >= 1)
    assert found["open"] == (most is None and values.max() >= edges[-1])


# --- in a browser ---------------------------------------------------------------------------

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)

# What the tests look at the page with.
LOOK = """
const one = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
const texts = (selector) => all(selector).map((element) => element.textContent);
const cells = (selector) => all(selector).map((row) => [...row.cells].map((c) => c.textContent));
const seen = (selector) => all(selector).filter((e) => e.getClientRects().length).length;
const names = () => texts("#gallery .name");
"""
KEY_CODES = {
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


class Chromium:
    """A browser with one page, driven through pipes: messages are JSON that ends with a zero."""

    def __init__(self, profile):
        theirs, ours = zip(*(self._pipe(down) for down in (True, False)), strict=True)
        self._read, self._write = ours[1], ours[0]
        self._process = subprocess.Popen(
            [
                BROWSER,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
                "--disable-dev-shm-usage",
                f"--user-data-dir={profile}",
                "--no-first-run",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(theirs[0], 3), os.dup2(theirs[1], 4)),
        )
        for end in theirs:
            os.close(end)
        self._numbers, self._rest, self._session = itertools.count(1), b"", {}
        self.complaints = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _pipe(down):
        """(the browser's end, this end), neither of them 3 or 4, which the browser's become."""
        import fcntl  # not on Windows

        ends = os.pipe()
        moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
        for end in ends:
            os.close(end)
        return moved if down else moved[::-1]

    def _message(self):
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], 60)[0], "the browser does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(message)
        kind, more = message.get("method"), message.get("params", {})
        if kind in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}:
            self.complaints.append(more)
        return message

    def call(self, method, **parameters):
        """Send a command; its result."""
        number = next(self._numbers)
        text = json.dumps({"id": number, "method": method, "params": parameters, **self._session})
        os.write(self._write, text.encode() + b"\0")
        while (message := self._message()).get("id") != number:
            pass
        assert "error" not in message, message
        return message["result"]

    def open(self, path, address=""):
        """Load a page afresh."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=path.as_uri() + address)
        while self("document.readyState") != "complete":
            pass
        self.call("Runtime.evaluate", expression=LOOK)
        self("one('#images').scrollIntoView()")
        self.settle()

    def size(self, width, height):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def __call__(self, expression):
        """The value of an expression in the page."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def settle(self):
        """Wait until what happened is on the screen."""
        self(
            "new Promise((done) => setTimeout(() => requestAnimationFrame("
            "() => requestAnimationFrame(() => done())), 30))"
        )

    def press(self, key, shift=False):
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        keys = {
            "key": key,
            "modifiers": 8 * shift,
            "windowsVirtualKeyCode": KEY_CODES.get(key, ord(key[0])),
        }
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)
        self.settle()

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **more)

    def middle(self, selector):
        """Where the middle of an element is, in pixels of the window."""
        self(f"one({selector!r}).scrollIntoView({{block: 'nearest'}})")
        return self(
            "(({x, y, width, height}) => [x + width / 2, y + height / 2])"
            f"(one({selector!r}).getBoundingClientRect())"
        )

    def drag(self, start, end):
        button = {"button": "left", "buttons": 1, "clickCount": 1}
        self.mouse("Pressed", *start, **button)
        if start != end:
            self.mouse("Moved", *end, **button)
        self.mouse("Released", *end, **button)
        self.settle()

    def click(self, selector):
        middle = self.middle(selector)
        self.drag(middle, middle)

    def choose(self, selector, value):
        """A value of a list."""
        self(
            f"one({selector!r}).value = {value!r};"
            f"one({selector!r}).dispatchEvent(new Event('change'))"
        )
        self.settle()

    def type(self, selector, text):
        """Text in place of what a field holds."""
        self(f"one({selector!r}).focus(), one({selector!r}).select()")
        self.call("Input.insertText", text=text)
        self.settle()

    def close(self):
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no chromium or chrome on the PATH (Debian: apt install chromium)")
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium):
    """A browser in a window of usual size; the test fails where a page complains."""
    chromium.complaints.clear()
    chromium.size(1280, 900)
    yield chromium
    assert chromium.complaints == []


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    """A report of seven images (one with a hostile name, one without nuclei), and its tables."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("detect") / "index.html"
    writer = ReportWriter(path, HOSTILE, {"Command": HOSTILE}, 0.4, nouns=NUCLEI)
    counts = {"cell 10": 12, "cell 2": 1, HOSTILE: 5, "empty": 0, "Cell 1": 16, "b": 3, "a": 9}
    tables = {
        name: add_discs(writer, rng, name, count, link=f"{name}.png")
        for name, count in counts.items()
    }
    writer.add_failed(HOSTILE, "not an image")
    writer.close(False)
    return path, tables


def test_overview_in_the_browser(browser, detected):
    path, tables = detected
    browser.open(path)
    assert browser("one('h1').textContent") == HOSTILE
    assert browser("[document.title, seen('img[src=x]')]") == [HOSTILE, 0]
    pixels = np.median(np.concatenate([table["area"] for table in tables.values()]))
    names = browser("texts('#tiles dt')")
    assert dict(zip(names, browser("texts('#tiles dd')"), strict=True)) == {
        "Images": "7 + 1 not processed",
        "Nuclei": "46",
        "Nuclei per image, mean": "6.6",
        "Median area": f"{pixels * 0.16:.3g} µm² ({pixels:.3g} px)",
    }
    notice = browser("one('#incomplete').textContent")
    assert "stopped" in notice and "7 images" in notice
    assert browser("one('#failed-list').textContent") == HOSTILE + "not an image"
    assert browser("one('#facts').textContent").startswith("Command" + HOSTILE)
    assert browser("all('#charts figcaption').map((c) => c.firstChild.textContent)") == [
        "Nuclei per image",
        "Area",
        "Confidence",
    ]
    bars = browser("texts('#charts figure:first-child title')")
    assert bars == [f"{n}: {sum(len(t) == n for t in tables.values())} images" for n in range(17)]


def test_sorting_and_finding_in_the_browser(browser, detected):
    path, tables = detected
    browser.open(path)
    names = browser("names()")
    assert sorted(names) == sorted(tables)
    assert [name for name in names if name != HOSTILE] == [
        "a",
        "b",
        "Cell 1",
        "cell 2",
        "cell 10",
        "empty",
    ]
    numbers = browser("texts('#gallery .numbers')")
    place = 2 * names.index("a")
    assert numbers[place : place + 2] == [
        "9 nuclei",
        f"confidence {tables['a']['score'].mean():.2f}",
    ]
    assert "1 nucleus" in numbers and "no nuclei" in numbers
    keys = {
        "count": len,
        "confidence": lambda table: table["score"].mean(),
        "area": lambda table: table["area"].median(),
    }
    for sort, key in keys.items():
        values = {name: key(table) for name, table in tables.items() if len(table)}
        rising = [*sorted(values, key=values.get), "empty"]  # what is not known stays last
        falling = [*sorted(values, key=values.get, reverse=True), "empty"]
        browser.choose("#sort", sort)
        assert browser("names()") == (rising if sort == "confidence" else falling)
    browser.click("#order")
    assert browser("names()") == rising
    browser.type("#filter", "CELL")
    assert browser("names()") == [name for name in rising if "cell" in name.lower()]
    assert browser("one('#shown').textContent") == "3 of 7 images"
    assert browser("location.hash") == "#sort=area&order=up&filter=CELL"
    browser.type("#filter", "nothing like it")
    assert browser("[names().length, seen('#nothing')]") == [0, 1]


def test_outlines_in_the_browser(browser, detected):
    browser.open(detected[0])
    shown = browser("seen('#gallery path.found')")
    assert shown > 0
    browser.click(".bar-of-tools [data-layer=found]")
    assert browser("[seen('#gallery path.found'), location.hash]") == [0, "#overlay=off"]
    browser.press("o")
    assert browser("seen('#gallery path.found')") == shown
    browser.type("#filter", "")
    browser.press("o")  # is a letter there
    assert browser("[one('#filter').value, location.hash]") == ["o", "#filter=o"]


def test_table_of_an_image_in_the_browser(browser, detected):
    path, tables = detected
    browser.open(path, "#image=1&overlay=off")
    table = tables["cell 10"]
    assert browser("one('dialog[open] h2').textContent") == "cell 10"
    assert browser("seen('dialog path.found')") == 0
    rows = np.array(browser("cells('#side tbody tr')"), float)
    assert rows[:, 0].tolist() == table["label"].tolist()
    np.testing.assert_allclose(rows[:, 1], table["score"], atol=0.0051)
    np.testing.assert_allclose(rows[:, 2], table["area_um2"], rtol=6e-3)
    np.testing.assert_allclose(rows[:, 3], table["perimeter_um"], rtol=6e-3)
    np.testing.assert_allclose(rows[:, 4], table["eccentricity"], atol=0.0051)
    np.testing.assert_allclose(rows[:, 5], table["mean_intensity"], atol=0.51)
    assert rows[:, 6].tolist() == table["neighbours"].tolist()
    facts = browser("one('#side .facts').textContent")
    assert "12 nuclei" in facts and "64 × 64 px, 25.6 × 25.6 µm" in facts
    assert browser("one('#side a').getAttribute('href')") == "./cell%2010.png"
    assert browser("one('#canvas img').alt") == "cell 10, 12 nuclei"
    assert browser("one('#canvas img').naturalWidth") == 64
    browser.click("#side thead th:nth-child(3) button")
    assert browser("cells('#side tbody tr').map((row) => Number(row[2]))") == sorted(rows[:, 2])
    browser.press("o")
    assert browser("seen('dialog path[data-row]')") == len(table)


def test_instances_in_the_browser(browser, detected):
    """A row marks its instance in the image, which comes to the middle; a click there a row."""
    browser.open(detected[0], "#image=1")
    chosen = "texts('#side tr.chosen th')"
    browser.click("#side tbody tr:nth-child(3) td")
    assert browser(chosen) == ["3"]
    assert browser("one('#chosen').getAttribute('d')") == browser(
        "one('#canvas path[data-row=\"2\"]').getAttribute('d')"
    )
    centre = browser.middle("#stage")
    np.testing.assert_allclose(browser.middle("#chosen"), centre, atol=2)
    # One of the discs 16 pixels to the left.
    scale = browser("one('#canvas').clientWidth") / 64
    place = [centre[0] - 16 * scale, centre[1]]
    browser.drag(place, place)
    assert browser(chosen) == ["2"]


def test_zoom_in_the_browser(browser, detected):
    browser.open(detected[0], "#image=1")
    box = "(({x, y, width}) => [x, y, width])(one('#canvas').getBoundingClientRect())"
    x, y, width = browser(box)
    assert width == min(browser("[one('#stage').clientWidth, one('#stage').clientHeight]"))
    browser.press("+")
    assert browser(box)[2] == pytest.approx(1.25 * width)
    browser.press("0")
    assert browser(box) == pytest.approx([x, y, width])
    place = x + width / 4, y + width / 3
    browser.mouse("Wheel", *place, deltaX=0, deltaY=-400)
    browser.settle()
    left, top, wide = browser(box)
    assert wide > 1.5 * width
    # What was below the pointer is there still.
    assert (place[0] - left) / wide == pytest.approx(1 / 4, abs=0.01)
    assert (place[1] - top) / wide == pytest.approx(1 / 3, abs=0.01)
    browser.drag(place, (place[0] + 30, place[1] - 20))
    assert browser(box) == pytest.approx([left + 30, top - 20, wide])
    browser.press("ArrowRight", shift=True)
    assert browser(box) == pytest.approx([left - 50, top - 20, wide])
    assert browser("texts('#side tr.chosen')") == []


def test_two_fingers_zoom_in_the_browser(browser, detected):
    browser.size(390, 844)
    browser.open(detected[0], "#image=1")
    width = browser("one('#canvas').clientWidth")
    assert browser("document.documentElement.scrollWidth") <= 390
    x, y = browser.middle("#stage")
    for kind, apart in (("Start", 40), ("Move", 60), ("Move", 80)):
        browser.call(
            "Input.dispatchTouchEvent",
            type=f"touch{kind}",
            touchPoints=[{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}],
        )
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.settle()
    assert browser("one('#canvas').clientWidth") == pytest.approx(2 * width, rel=0.05)


def test_opening_and_closing_in_the_browser(browser, detected):
    path, tables = detected
    order = sorted(tables, key=lambda name: -len(tables[name]))
    browser.open(path, "#sort=count")
    title = "one('dialog[open] h2')?.textContent ?? null"
    focused = "document.activeElement.querySelector('.name')?.textContent"
    browser.click("#gallery .card")
    assert browser(title) == order[0]
    assert browser("one('#previous').disabled") is True
    for name in order[1:3]:
        browser.press("ArrowRight")
        assert browser(title) == name
    browser.press("ArrowLeft")
    assert browser(title) == order[1]
    browser.press("o")
    browser.press("Escape")
    assert browser(title) is None and browser(focused) == order[1]
    assert browser("location.hash") == "#sort=count&overlay=off"
    browser.press("Tab")
    assert browser(focused) == order[2]
    assert browser("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    assert browser(title) == order[2]
    browser("history.back()")
    browser.settle()
    assert browser(title) is None
    browser.press("Enter")
    browser.click("#close")
    assert browser(title) is None and browser(focused) == order[2]


def test_an_evaluation_in_the_browser(browser, rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {}, kind="evaluate", nouns=NUCLEI)
    evaluation = Evaluation(KINDS_OF_IMAGES)
    for number in range(8):
        truth, image = discs(rng, 9)
        labels = np.where(truth > number, truth, 0)
        scores = np.full(9 - number, 0.9)
        row = evaluation.add(f"{number}", image, truth[..., None], labels, scores)
        table = measurements(labels, scores, image)
        writer.add(f"{number}", image, labels, table, truth[..., None], row)
    writer.close(True, evaluation.summary())
    browser.open(writer.path, "#sort=score")
    summary = evaluation.summary()
    assert browser("names()") == list("76543210")
    assert browser("texts('#worst-cards .name')") == list("7654")
    assert browser("texts('#best-cards .name')") == list("0123")
    points = browser("texts('#score-panels title')")
    for name, key in (("F1", "f1"), ("TP / (TP + FP + FN)", "tp_over_tp_fp_fn")):
        for threshold, value in zip(summary["thresholds"], summary[key], strict=True):
            assert f"{name} at {threshold:.2f}: {value:.3f}" in points
    assert ["Competition score", f"{summary['score']:.3f}"] in browser("cells('#scores tr')")
    [(kind, values)] = summary["by_kind"].items()
    low, high = values["score_interval"]
    assert browser("cells('#kinds-table tbody tr')") == [
        [kind, "8", f"{values['ap_50']:.3f}", f"{values['score']:.3f}", f"{low:.3f}–{high:.3f}", ""]
    ]
    low, high = summary["score_interval"]
    assert browser("[texts('#tiles dd')[0], texts('#tiles dt')[0]]") == [
        f"{summary['score']:.3f}",
        f"Score (95 %: {low:.3f}–{high:.3f})",
    ]
    layers = "['truth', 'found'].map((name) => seen(`#gallery path.${name}`))"
    both = browser(layers)
    assert both[0] == both[1] > 0
    browser.click(".bar-of-tools [data-layer=truth]")
    assert browser(layers) == [0, both[1]]
    assert browser("location.hash") == "#sort=score&overlay=found"
    browser.press("o")
    browser.press("o")
    assert browser(layers) == both
    browser.click("#worst-cards .card")
    facts = browser("one('#side .facts').textContent")
    assert f"Score{evaluation.rows[7]['score']:.3f}" in facts
    assert "True9" in facts and "Found2 nuclei" in facts


def test_thousands_of_images_in_the_browser(browser, rng, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {})
    labels, image = discs(rng, 1, 16)
    table = measurements(labels, [0.9], image)
    for number in range(2000):
        writer.add(f"image {number}", image, labels, table)
    writer.close(True)
    browser.open(writer.path)
    elements = "all('body *:not(script)').length"
    assert browser("names()[0]") == "image 0" and browser(elements) < 1500
    height = browser("document.documentElement.scrollHeight")
    assert height > 50_000
    browser(f"scrollTo(0, {height / 2})")
    browser.settle()
    assert browser(elements) < 1500 and 10 <= browser("names().length") < 120
    # All that is in the window is there.
    size = "(({columns, rowHeight}) => Math.floor(innerHeight / rowHeight) * columns)(grid())"
    assert browser(
        "all('#gallery li').filter((item) => {"
        "const box = item.getBoundingClientRect();"
        "return box.bottom > 0 && box.top < innerHeight; }).length"
    ) >= browser(size)
    assert 700 < int(browser("one('#gallery li').getAttribute('aria-posinset')")) < 1100
    browser(f"scrollTo(0, {height})")
    browser.settle()
    assert browser("names().at(-1)") == "image 1999"
    browser.type("#filter", "1234")
    assert browser("names()") == ["image 1234"]


def test_an_empty_report_in_the_browser(browser, tmp_path):
    writer = ReportWriter(tmp_path / "index.html", "Run", {}, kind="evaluate")
    writer.close(True, Evaluation(KINDS_OF_IMAGES).summary())
    browser.open(writer.path, "#image=3&sort=nonsense")
    assert browser("[texts('#tiles dd')[0], seen('#images'), seen('dialog')]") == ["0", 0, 0]
