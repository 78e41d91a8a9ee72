"""Speed of this package against torchvision's Mask R-CNN and against what the processor could do.

    python benchmarks/compare.py                    everything, into benchmarks/results.md
    python benchmarks/compare.py --quick            fewer repetitions
    python benchmarks/compare.py --parts training --output training.md
    python benchmarks/compare.py --prepare          only install torchvision and train the weights

Four contestants (this package and torchvision, each in float32 and bfloat16) run in processes of
their own and take turns, on the same images, with the same settings and numbers of threads.
The first run makes torchvision's environment in benchmarks/.peer (some 5 GB) and trains both
networks for some minutes, so that both find the same objects; all of this is kept. See
benchmarks/README.md for how to read the table.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)

from benchmarks import networks, ours, report, scenes, workers  # noqa: E402
from benchmarks.command import exit_code  # noqa: E402
from benchmarks.report import Timing  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
PEER_VERSION = "0.29.2"
PEER_WEIGHTS = CACHE / "torchvision.npz"
PRECISIONS = ("float32", "bfloat16")
CONTESTANTS = [(who, precision) for precision in PRECISIONS for who in ("mrcnn", "torchvision")]
PARTS = ("detection", "training", "nucleus")

# Training on both sides: at most this many steps, and how often to check whether it is enough.
LESSON_STEPS, LESSON_CHUNK = 600, 25
COUNT_TOLERANCE = 0.1

MATRIX_SIDE = 3072
CONVOLUTION = {"side": 128, "channels": 256}


def say(message: str) -> None:
    """A line of progress."""
    print(message, file=sys.stderr, flush=True)


# ---- torchvision's environment -----------------------------------------------------------------


def peer_python(chosen: str | None) -> str:
    """The interpreter that has torchvision: the chosen one, or that of benchmarks/.peer, which is
    created if it is not there. Raises UserError."""
    if chosen:
        _check_peer(chosen)
        return chosen
    folder = HERE / ".peer"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "complete").is_file():
        say(f"Installing torchvision {PEER_VERSION} into {folder} (some 5 GB)")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], "cannot make " + str(folder))
        packages = [f"torchvision=={PEER_VERSION}", "numpy"]
        _run(
            [str(python), "-m", "pip", "install", "--quiet", *packages],
            "cannot install torchvision (no network?); give an interpreter that has it with "
            "--peer-python",
        )
        (folder / "complete").touch()
    _check_peer(str(python))
    return str(python)


def _check_peer(python: str) -> None:
    _run([python, "-c", "import torchvision, numpy"], f"{python} cannot import torchvision")


def _run(command: list[str], complaint: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"{complaint}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"{complaint}: {last}")


# ---- Contestants -------------------------------------------------------------------------------


def worker(who: str, precision: str, setup) -> workers.Worker:
    """The process of one contestant."""
    if who == "mrcnn":
        command = [sys.executable, str(HERE / "ours.py")]
    else:
        command = [setup.peer, str(HERE / "peer.py"), precision]
    return workers.Worker(f"{who} {precision}", command, setup.threads)


def load_detectors(crew: dict, widths: str, weights: Path, side: int) -> None:
    """Load every contestant's detector for images of `side` pixels at the network's input."""
    for (who, precision), process in crew.items():
        if who == "mrcnn":
            process.ask("load_detector", widths=widths, weights=str(weights), PRECISION=precision)
        else:
            process.ask("load_detector", weights=str(PEER_WEIGHTS), side=side)


def prepare(setup) -> None:
    """Train both sides until they find the objects, unless that was done before."""
    CACHE.mkdir(exist_ok=True)
    for who, path in (("mrcnn", ours.COMPARISON_WEIGHTS), ("torchvision", PEER_WEIGHTS)):
        if not path.is_file():
            _train(who, path, setup)


def _train(who: str, path: Path, setup) -> None:
    draft = path.with_stem(path.stem + "_draft")
    with worker(who, "bfloat16", setup) as pupil, worker(who, "float32", setup) as examiner:
        pupil.ask("start_lessons")
        for steps in range(LESSON_CHUNK, LESSON_STEPS + 1, LESSON_CHUNK):
            loss = pupil.ask("learn", steps=LESSON_CHUNK)["loss"]
            note = f"Training {who}: step {steps}, loss {loss:.2f}"
            if steps >= 4 * LESSON_CHUNK:
                pupil.ask("save_lessons", path=str(draft))
                if who == "mrcnn":
                    examiner.ask("load_detector", widths="comparison", weights=str(draft))
                else:
                    examiner.ask("load_detector", weights=str(draft), side=512)
                chosen = (scenes.SPARSE, scenes.DENSE)
                found = [examiner.ask("detect", scene=s.to_json())["detections"] for s in chosen]
                note += f", found {found} of {[s.count for s in chosen]}"
                if all(close(n, s.count) for n, s in zip(found, chosen, strict=True)):
                    say(note)
                    draft.rename(path)
                    return
            say(note)
    raise UserError(f"{who} did not learn to find the objects in {LESSON_STEPS} steps")


def close(found: int, true: int) -> bool:
    """Whether a number of detections is within COUNT_TOLERANCE of the true one."""
    return abs(found - true) <= COUNT_TOLERANCE * true


# ---- Measuring ---------------------------------------------------------------------------------


def take_turns(crew: dict, repeat: int, title: str, do: str, **arguments) -> dict:
    """{contestant: list of answers} of `repeat` rounds in which each contestant runs once.

    Two rounds before them, untimed, compile and fill caches.
    """
    answers: dict = {key: [] for key in crew}
    for turn in range(-2, repeat):
        stage = "warm-up" if turn < 0 else f"round {turn + 1} of {repeat}"
        for key, process in crew.items():
            answer = process.ask(do, **arguments)
            if turn >= 0:
                answers[key].append(answer)
        seconds = "  ".join(f"{' '.join(key)} {a[-1]['seconds']:.2f}" for key, a in answers.items()
                            if a and "seconds" in a[-1])  # fmt: skip
        say(f"{title}: {stage}  {seconds}")
    return answers


def tune(crew: dict, do: str, **arguments) -> dict[str, str]:
    """Let every contestant choose its memory layout; returns what each chose."""
    chosen = {}
    for key, process in crew.items():
        say(f"Memory layout of {' '.join(key)}")
        chosen[" ".join(key)] = process.ask("tune", what=do, **arguments)["layout"]
    return chosen


def measure_rates(crew: dict, repeat: int) -> dict[str, dict[tuple, float]]:
    """{what: {(who, precision): median FLOP/s}} of a matrix product and a 3x3 convolution."""
    rates = {}
    for what, do, sizes in (("matrix product", "matrix_rate", {"side": MATRIX_SIDE}),
                            ("3x3 convolution", "convolution_rate", CONVOLUTION)):  # fmt: skip
        answers: dict = {key: [] for key in crew}
        for turn in range(-1, repeat):
            for (who, precision), process in crew.items():
                rate = process.ask(do, precision=precision, **sizes)["rate"]
                if turn >= 0:
                    answers[who, precision].append(rate)
        rates[what] = {key: Timing.of(values).median for key, values in answers.items()}
        say(
            f"{what}: "
            + ", ".join(f"{' '.join(k)} {r / 1e9:.0f}" for k, r in rates[what].items())
            + " GFLOP/s"
        )
    return rates


def best_rate(rates: dict, precision: str) -> float:
    """The better matrix rate of the two libraries, FLOP/s."""
    return max(rate for (_, kind), rate in rates["matrix product"].items() if kind == precision)


def network_of(who: str, widths: str) -> networks.Network:
    """The network that a contestant runs."""
    if who == "torchvision":
        return networks.TORCHVISION
    return ours.network_of(ours.configuration(widths))


def measure_detection(setup, widths: str, images: dict, side: int) -> dict:
    """Rows of detection: {"rates", "layouts", "rows", "idle"}."""
    weights = ours.weights_of(widths)
    with crew_of(setup) as crew:
        rates = measure_rates(crew, setup.repeat)
        say("Loading detectors")
        load_detectors(crew, widths, weights, side)
        layouts = tune(crew, "detect", scene=next(iter(images.values())).to_json())
        rows = []
        for title, scene in images.items():
            answers = take_turns(crew, setup.repeat, title, "detect", scene=scene.to_json())
            for key, found in answers.items():
                count = found[-1]["detections"]
                work = networks.detection_multiply_adds(network_of(key[0], widths), side, count)
                rows.append((title, key, count, Timing.of([a["seconds"] for a in found]), work))
        return {"rates": rates, "layouts": layouts, "rows": rows, "idle": idle_share(crew)}


def measure_training(setup) -> dict:
    """Rows of a training step, like `measure_detection`."""
    scene = scenes.SPARSE
    with crew_of(setup) as crew:
        rates = measure_rates(crew, setup.repeat)
        say("Building training graphs")
        task = {"scene": scene.to_json(), "batch": networks.BATCH}
        for (who, precision), process in crew.items():
            if who == "mrcnn":
                process.ask(
                    "load_trainer",
                    widths="comparison",
                    PRECISION=precision,
                    weights=str(ours.COMPARISON_WEIGHTS),
                    **task,
                )
            else:
                process.ask("load_trainer", weights=str(PEER_WEIGHTS), **task)
        layouts = tune(crew, "step")
        answers = take_turns(crew, setup.training_repeat, "training step", "step")
        rows = []
        for key, done in answers.items():
            work = networks.training_multiply_adds(network_of(key[0], "comparison"), scene.side)
            rows.append(("training step", key, "", Timing.of([a["seconds"] for a in done]), work))
        return {"rates": rates, "layouts": layouts, "rows": rows, "idle": idle_share(crew)}


def idle_share(crew: dict) -> dict[str, float]:
    """Processor seconds that each contestant used while it waited for its turn."""
    return {" ".join(key): process.ask("memory")["idle_cpu"] for key, process in crew.items()}


@contextlib.contextmanager
def crew_of(setup):
    """{contestant: worker}, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield {key: stack.enter_context(worker(*key, setup)) for key in CONTESTANTS}


# ---- The report --------------------------------------------------------------------------------

SETTINGS = f"""Network: ResNet-50, pyramid {networks.OURS.pyramid} channels, proposal head \
{networks.OURS.rpn}, box head {networks.OURS.box}, mask head 4 x {networks.OURS.mask}, \
{networks.OURS.classes} classes, anchors {networks.ANCHOR_SIDES[0]} to \
{networks.ANCHOR_SIDES[-1]} pixels with {len(networks.ANCHOR_RATIOS)} ratios. \
Detection: up to {networks.CANDIDATES_PER_LEVEL} candidates per level into suppression, \
{networks.PROPOSALS} proposals, at most {networks.MAX_DETECTIONS} detections, confidence \
{networks.MIN_CONFIDENCE}, suppression at {networks.DETECTION_NMS}; uint8 image in, full-size \
boolean masks out. Training: {networks.BATCH} images, all layers, frozen batch norm, \
{networks.TRAIN_ROIS} regions per image with {networks.POSITIVE_SHARE:.0%} positive, \
{networks.TRAIN_ANCHORS} anchors, SGD with momentum and weight decay."""


def table_of(part: dict) -> str:
    """The Markdown table of one part."""
    medians = {(title, *key): timing.median for title, key, _, timing, _ in part["rows"]}
    lines = []
    for title, (who, precision), count, timing, work in part["rows"]:
        ratios = [timing.median / medians[title, "torchvision", p] for p in PRECISIONS]
        limit = 2 * work / best_rate(part["rates"], precision)
        lines.append((title, who, precision, count, timing, *(f"{r:.2f}" for r in ratios),
                      f"{work / 1e9:.1f}", f"{timing.median / limit:.2f}"))  # fmt: skip
    titles = ["what", "contestant", "precision", "detections", "seconds (quartiles)",
              "/ torchvision float32", "/ torchvision bfloat16", "GMAC", "x limit"]  # fmt: skip
    return report.markdown_table(titles, lines)


def rates_table(rates: dict) -> str:
    """Measured FLOP/s as Markdown."""
    library = {"mrcnn": "TensorFlow", "torchvision": "PyTorch"}
    rows = [
        [what, library[who], *(f"{measured[who, p] / 1e9:.0f}" for p in PRECISIONS)]
        for what, measured in rates.items()
        for who in library
    ]
    return report.markdown_table(["GFLOP/s", "library", *PRECISIONS], rows)


def write_report(setup, versions: dict, parts: dict[str, dict]) -> str:
    """The whole report as Markdown."""
    facts = report.machine_facts(setup.threads)
    facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    lines = [
        "# Speed",
        "",
        "Made by `python benchmarks/compare.py`; benchmarks/README.md says how to read it.",
        "",
        report.markdown_table(["", ""], facts),
        "",
        SETTINGS,
        "",
    ]
    for name, part in parts.items():
        lines += [
            f"## {PART_TITLES[name]}",
            "",
            table_of(part),
            "",
            f"Matrix products of {MATRIX_SIDE} x {MATRIX_SIDE}, 3x3 convolutions of "
            f"{CONVOLUTION['channels']} to {CONVOLUTION['channels']} channels on "
            f"{CONVOLUTION['side']} x {CONVOLUTION['side']} cells, measured in the same "
            "minutes:",
            "",
            rates_table(part["rates"]),
            "",
            "Memory layouts: "
            + ", ".join(f"{k} {v}" for k, v in part["layouts"].items())
            + ". Processor time used while waiting: "
            + ", ".join(f"{k} {v:.2f} s" for k, v in part["idle"].items())
            + ".",
            "",
        ]
    return "\n".join(lines)


PART_TITLES = {
    "detection": "Detection, 512 x 512",
    "training": f"A training step, {networks.BATCH} images of 512 x 512",
    "nucleus": "The nucleus application's default on 256 x 256, enlarged equally by both sides",
}


def measure(setup) -> dict[str, dict]:
    """Every part that was asked for."""
    runs = {
        "detection": lambda: measure_detection(
            setup, "comparison", {"50 objects": scenes.SPARSE, "300 objects": scenes.DENSE}, 512
        ),
        "training": lambda: measure_training(setup),
        "nucleus": lambda: measure_detection(
            setup,
            "nucleus",
            {"50 objects": scenes.SMALL},
            int(scenes.SMALL.side * ours.configuration("nucleus").IMAGE_MIN_SCALE),
        ),
    }
    return {name: runs[name]() for name in PARTS if name in setup.parts}


def versions_of(setup) -> dict:
    """Names and versions of the libraries on both sides; fails early if one is missing."""
    versions = {}
    for who in ("mrcnn", "torchvision"):
        with worker(who, "float32", setup) as process:
            versions |= process.ask("versions")
    return {k: v for k, v in versions.items() if k != "idle_cpu"}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    add("--repeat", type=int, default=11, help="timed rounds of detection")
    add("--training-repeat", type=int, default=7, help="timed rounds of training")
    add("--quick", action="store_true", help="3 rounds of each")
    add("--threads", type=int, default=workers.default_threads(), help="threads per contestant")
    add("--peer-python", metavar="PATH", help="an interpreter that has torchvision")
    add("--prepare", action="store_true", help="make environment and weights, measure nothing")
    add("--output", type=Path, default=HERE / "results.md", help="the Markdown file")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.repeat = chosen.training_repeat = 3
    if min(chosen.repeat, chosen.training_repeat, chosen.threads) < 1:
        parser.error("--repeat, --training-repeat and --threads must be at least 1")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    setup = parse(arguments)
    return exit_code("compare.py", lambda: compare(setup))


def compare(setup: argparse.Namespace) -> None:
    setup.peer = peer_python(setup.peer_python)
    versions = versions_of(setup)
    prepare(setup)
    if not setup.prepare:
        text = write_report(setup, versions, measure(setup))
        setup.output.write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    sys.exit(main())
