"""A folder of real images from command to last file, against StarDist and another version.

    python benchmarks/folder.py --dataset DIR --output FOLDER --stardist-python PYTHON
    python benchmarks/folder.py --dataset DIR --output FOLDER --against CHECKOUT

`mrcnn detect` runs as its users run it, in a process of its own, with its default files, on
`--count` images of a subset, spread evenly over it; and once on a single image of 256 x 256 pixels.
`--against` names another checkout of this project, which does the same with its own weights.
StarDist 0.9 runs its `StarDist2D` in its default configuration on the same files, with
`predict_instances`, and writes its labels as TIFF; its weights are random, and its threshold is the
one at which an image has `CANDIDATES` candidates, found before the clock starts. The contestants
take turns; the first turn of each does not count.

It prints the seconds per image of the whole command, including start-up and exit, and of the images
of each size alone, and all ratios to the first contestant.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.io

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.command import exit_code  # noqa: E402
from mrcnn.cli.flags import positive  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402
from samples.nucleus.nucleus import load_dataset  # noqa: E402

CANDIDATES = 2000
SMALL = 256  # side of the single image

# In a process of StarDist's own interpreter: seconds of every image, as JSON. Arguments: folder of
# images, folder of results, candidates per image.
STARDIST = """
import json, sys, time
from pathlib import Path
import numpy as np, skimage.io, tifffile
from stardist.models import Config2D, StarDist2D
images, output, candidates = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
model = StarDist2D(Config2D(n_channel_in=3), name=None, basedir=None)
output.mkdir(exist_ok=True)
def read(path):
    image = skimage.io.imread(path)[..., :3].astype(np.float32)
    low, high = np.percentile(image, (1, 99.8))
    return (image - low) / max(high - low, 1e-6)
paths, thresholds, preparing = sorted(images.glob("*.png")), {}, time.perf_counter()
for path in paths:
    probabilities = np.sort(model.predict(read(path))[0].ravel())
    thresholds[path] = float(probabilities[-min(candidates, len(probabilities))])
prepared, seconds = time.perf_counter() - preparing, {}
for path in paths:
    began = time.perf_counter()
    labels, _ = model.predict_instances(read(path), prob_thresh=thresholds[path])
    tifffile.imwrite(output / f"{path.stem}.tif", labels.astype(np.uint16))
    seconds[path.name] = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "prepared": prepared}))
"""

# In a process of a checkout: seconds of every image with a detector that is ready.
READY = """
import json, sys, time
from pathlib import Path
import mrcnn, skimage.io
detector, seconds = mrcnn.load("nucleus"), {}
for turn in range(2):
    for path in sorted(Path(sys.argv[1]).glob("*.png")):
        image = skimage.io.imread(path)
        began = time.perf_counter()
        detector.detect(image)
        seconds[path.name] = time.perf_counter() - began
print(json.dumps({"seconds": seconds}))
"""


def write_images(options: argparse.Namespace) -> dict[str, tuple[int, int]]:
    """Write the images as PNG to `images`, one of SMALL pixels to `one`; returns their sizes."""
    dataset = load_dataset(options.dataset, options.subset, labelled=False)
    numbers = np.linspace(0, len(dataset.image_ids) - 1, options.count).round().astype(int)
    sizes = {}
    for name in ("images", "one"):
        (options.output / name).mkdir(parents=True, exist_ok=True)
        for old in (options.output / name).glob("*.png"):
            old.unlink()
    for number in sorted(set(numbers.tolist())):
        image, name = dataset.load_image(number), f"{number:04d}.png"
        skimage.io.imsave(options.output / "images" / name, image, check_contrast=False)
        sizes[name] = image.shape[:2]
        if image.shape[:2] == (SMALL, SMALL):
            skimage.io.imsave(options.output / "one" / "0000.png", image, check_contrast=False)
    if not any((options.output / "one").iterdir()):
        raise UserError(
            f"none of the {options.count} images has {SMALL} x {SMALL} pixels: raise --count"
        )
    return sizes


def run(command: list[str], folder: str | None = None) -> tuple[float, str]:
    """Run a program, from a checkout; returns wall seconds, and what it prints."""
    environment = {**os.environ, **({"PYTHONPATH": folder} if folder else {})}
    began = time.perf_counter()
    # Python looks for packages in the current folder first.
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip() or "nothing was printed").splitlines()[-1]
        raise UserError(f"{' '.join(command[:4])[:80]} ... failed: {last}")
    return seconds, done.stdout


def last_json(text: str) -> dict:
    return json.loads(text.strip().splitlines()[-1])


def version(folder: str, output: Path, sizes: bool) -> dict[str, Callable]:
    """What is timed for a checkout, by name: each returns wall seconds and seconds by image.

    sizes: whether images are also timed alone, by their size.
    """

    def command(images: Path) -> tuple[float, dict]:
        flags = ["--output", str(output), "--overwrite"]
        call = [sys.executable, "-m", "mrcnn", "detect", str(images), *flags]
        return run(call, folder)[0], {}

    def ready(images: Path) -> tuple[float, dict]:
        wall, said = run([sys.executable, "-c", READY, str(images)], folder)
        return wall, last_json(said)["seconds"]

    works = {"folder": command, "one": command}
    return {**works, "ready": ready} if sizes else works


def stardist(python: str, output: Path) -> dict[str, Callable]:
    """The same for StarDist."""

    def command(images: Path) -> tuple[float, dict]:
        call = [python, "-c", STARDIST, str(images), str(output), str(CANDIDATES)]
        wall, said = run(call)
        found = last_json(said)
        return wall - found["prepared"], found["seconds"]

    return {"folder": command, "one": command}


def measure(options: argparse.Namespace) -> None:
    """Let the contestants take turns, and print their times."""
    options.output = options.output.resolve()
    sizes = write_images(options)
    contestants = {"this version": version(ROOT_DIR, options.output / "found_this", options.sizes)}
    if options.against:
        contestants["against"] = version(
            str(Path(options.against).resolve()), options.output / "found_against", options.sizes
        )
    if options.stardist_python:
        contestants["StarDist"] = stardist(options.stardist_python, options.output / "found_star")
    walls, alone = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for turn in range(options.turns + 1):
        for name, works in contestants.items():
            for what, work in works.items():
                wall, by_image = work(options.output / ("one" if what == "one" else "images"))
                print(f"turn {turn}: {name}, {what}: {wall:.1f} s", flush=True)
                if turn:
                    walls[what, name].append(wall)
                    if what != "one":
                        for image, seconds in by_image.items():
                            alone[name][sizes[image]].append(seconds)
    print(f"\n{len(sizes)} images, {options.turns} turns, median seconds")
    show("folder, per image", {n: np.median(walls["folder", n]) / len(sizes) for n in contestants})
    show("one image, start to end", {n: np.median(walls["one", n]) for n in contestants})
    for size in sorted(set(sizes.values())) if options.sizes else ():
        number = list(sizes.values()).count(size)
        title = f"{size[0]} x {size[1]} alone ({number})"
        show(title, {n: np.median(alone[n][size]) for n in contestants})


def show(title: str, seconds: dict[str, float]) -> None:
    """A line of the table."""
    first = next(iter(seconds.values()))
    print(
        f"{title:<28}" + "".join(f"{n}: {s:.3f} s ({s / first:.2f})   " for n, s in seconds.items())
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, metavar="DIR")
    parser.add_argument("--subset", default="tune")
    parser.add_argument("--count", type=positive, default=40, metavar="N", help="images (40)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--turns", type=positive, default=3, metavar="N", help="timed turns (3)")
    parser.add_argument("--against", metavar="CHECKOUT", help="another checkout of this project")
    parser.add_argument("--stardist-python", metavar="PYTHON", help="interpreter with StarDist")
    parser.add_argument(
        "--no-sizes", dest="sizes", action="store_false", help="time whole commands only"
    )
    options = parser.parse_args(arguments)
    return exit_code("folder.py", lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
