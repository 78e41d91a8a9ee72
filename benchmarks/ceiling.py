"""The ceiling of the pipeline: what a network without error would score.

    python -m benchmarks.ceiling --dataset DIR --subset val
    python -m benchmarks.ceiling --dataset DIR --subset val --scale 2 --convention exact

The truth of every image takes the network's place. It is scaled like the images, turned into mini
masks and mask targets by the functions that training uses, and mapped back to the image like
detections. Whatever the score then lacks is lost to sampling and rounding, and no training recovers
it. The same is done with boxes alone, and with discs whose outline is known to sub-pixel accuracy.

Shapes: H, W pixels of the image, L label layers, N nuclei, h, w mask cells.
Boxes are (y1, x1, y2, x2), in pixels or normalised to the network's input as the names say.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from benchmarks.command import exit_code
from mrcnn.cli.flag_values import positive, whole
from mrcnn.console import Progress
from mrcnn.data.batches import ground_truth_arrays
from mrcnn.data.examples import Example, crop_scale, draw_factor, make_example
from mrcnn.errors import UserError
from mrcnn.evaluation import metrics
from mrcnn.network.boxes import apply_box_deltas_graph, box_refinement_graph, constant
from mrcnn.network.detection import refine_detections_graph
from mrcnn.network.targets import mask_targets
from mrcnn.pixels.boxes import norm_boxes
from mrcnn.pixels.masks import Patch, label_map, layers_to_masks
from mrcnn.pixels.overlaps import iou_matrix
from mrcnn.pixels.unmolding import unmold_boxes, unmold_patches
from samples.nucleus.dsb2018 import load_dataset
from samples.nucleus.nucleus import NucleusConfig
from samples.nucleus.submission import Submission, SubmissionWriter

# How far moved boxes lie from the true ones: input pixels, and a factor on their sides.
LARGEST_SHIFT, LARGEST_STRETCH = 1.0, 1.1
# Standard deviation of a trained detector's box edges, as a fraction of the box's side.
DETECTOR_ERROR = 0.07
RADII = (3, 5, 8, 12, 20, 40)
DISCS = 12  # places where a disc of each radius is tried
SUBSAMPLES = 16  # points along a pixel's side, to measure how much of it a disc covers

# Every step includes those above it. The last three differ in their boxes: refined to the true
# ones, or left as they are.
STEPS = (
    "truth against itself",
    "overlaps removed",
    "CSV written and read",
    "boxes to the input and back",
    "mini masks",
    "mask targets, true boxes",
    "  ... refined and suppressed",
    "mask targets, moved boxes",
    "mask targets, boxes 7 % off",
)
# Besides the steps: the mask targets of a random training crop, boxes true and moved.
CROP_STEPS = ("training crop, true boxes", "training crop, moved boxes")
BOX_STEPS = ("normalised and back", "refined from moved boxes", "rounded to whole pixels")


class Setting(NamedTuple):
    """A column of the tables."""

    convention: str  # PIXEL_CONVENTION
    # Each image is enlarged by a random factor between the two; None: as the configuration has it,
    # by the size of the nuclei if OBJECT_SIZE is set.
    scales: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        if self.scales is None:
            return f"{self.convention} configured"
        low, high = self.scales
        return f"{self.convention} x{low:g}" + (f"-{high:g}" if high > low else "")

    def scale(
        self,
        image: np.ndarray,
        layers: np.ndarray,
        class_ids: np.ndarray,
        base: Any,
        rng: np.random.Generator,
    ) -> float:
        """The scale of one image, by the configuration `base` or random (log-uniform)."""
        if self.scales is None:
            return crop_scale(image, layers, class_ids, base)
        return draw_factor(self.scales, rng)

    def configure(self, base: Any, mode: str, instances: int) -> Any:
        """A copy of the configuration `base` for one image: "pad64" (all of it) or "crop"."""
        config = copy.copy(base)
        config.PIXEL_CONVENTION = self.convention
        config.IMAGE_RESIZE_MODE = mode
        config.USE_MINI_MASK = config.USE_RPN_ROIS = True
        config.MAX_GT_INSTANCES = max(1, instances)
        return config


# --- the truth in the network's place -----------------------------------------------------


class PerfectNetwork:
    """Outputs for one training example what the network should have learned."""

    def __init__(self, example: Example, config: Any, rng: np.random.Generator):
        self.example, self.config = example, config
        self.count = len(example.class_ids)
        arrays = ground_truth_arrays(example, config, rng)
        self.exact = config.exact_pixels
        self.input_boxes = arrays["input_gt_boxes"][: self.count]  # pixels of the input
        self.boxes = self.normalise(self.input_boxes)
        self.mini_masks = arrays["input_gt_masks"][: self.count]
        # Of the input; unlike that of a crop, not rounded to whole pixels.
        corner = np.array(example.window[:2])
        self.window = (*corner, *(corner + np.multiply(example.layers.shape[:2], example.scales)))
        # Any order will do, as long as no two are the same.
        self.scores = (1 - 0.1 * rng.permutation(self.count) / self.count).astype(np.float32)

    def normalise(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] in pixels of the input -> normalised."""
        return norm_boxes(boxes, self.example.image.shape, exact=self.exact)

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Normalised boxes -> pixels of the image."""
        example = self.example
        return unmold_boxes(
            boxes, example.layers.shape, example.image.shape, self.window, self.exact
        )

    def masks(self, boxes: np.ndarray) -> np.ndarray:
        """The mask targets float32 [N, h, w] of regions [N, 4], one per nucleus."""
        instance = np.arange(self.count, dtype=np.int32)[None]
        targets = mask_targets(
            constant(boxes[None]),
            ops.convert_to_tensor(instance),
            constant(self.boxes[None]),
            ops.convert_to_tensor(self.mini_masks[None]),
            self.config,
        )
        return ops.convert_to_numpy(targets)[0]

    def detect(self, rois: np.ndarray, refine: bool) -> tuple[np.ndarray, np.ndarray]:
        """The detections [D, 6] that remain of regions [N, 4] normalised, and their nuclei [D].

        refine: with the deltas that lead to the true boxes; otherwise with zeros.
        """
        std = constant(self.config.BBOX_STD_DEV)
        deltas = box_refinement_graph(constant(rois), constant(self.boxes)) / std
        deltas = ops.stack([deltas, deltas], axis=1) * float(refine)
        probabilities = np.stack([1 - self.scores, self.scores], axis=1)
        window = norm_boxes(self.window, self.example.image.shape, exact=self.exact)
        found = refine_detections_graph(
            constant(rois[None]), probabilities[None], deltas[None], window[None], self.config
        )
        found = ops.convert_to_numpy(found)[0]
        found = found[found[:, 4] > 0]
        order = np.argsort(self.scores)
        return found, order[np.searchsorted(self.scores[order], found[:, 5])]

    def unmold(
        self, boxes: np.ndarray, masks: np.ndarray, scores: np.ndarray, scale: float | None = None
    ) -> tuple[list[Patch], np.ndarray]:
        """What detection makes of boxes [N, 4] normalised and masks [N, h, w].

        scale: MASK_ROI_SCALE of the masks, by default the configuration's.
        Returns patches and scores; see `unmold_patches`.
        """
        config = copy.copy(self.config)
        config.MASK_ROI_SCALE = config.MASK_ROI_SCALE if scale is None else scale
        nucleus = np.ones(len(boxes))
        detections = np.column_stack([boxes, nucleus, scores])
        example = self.example
        _, _, scores, patches = unmold_patches(
            detections,
            np.stack([masks, masks], axis=-1),
            example.layers.shape,
            example.image.shape,
            self.window,
            config,
        )
        return patches, scores

    def labels(
        self, boxes: np.ndarray, masks: np.ndarray, scores: np.ndarray, scale: float | None = None
    ) -> np.ndarray:
        """The label map int32 [H, W] of what `unmold` returns."""
        patches, scores = self.unmold(boxes, masks, scores, scale)
        return label_map(patches, scores, self.example.layers.shape)

    def labels_of_whole_masks(self) -> np.ndarray:
        """The label map of the true masks at the resolution of the image, in the true boxes."""
        patches, scores = [], []
        whole = layers_to_masks(self.example.layers, self.count)
        for i, (y1, x1, y2, x2) in enumerate(self.example.source_boxes()):
            part = slice(i, i + 1)
            mask = whole[y1:y2, x1:x2, i][None].astype(np.float32)
            patch, score = self.unmold(self.boxes[part], mask, self.scores[part], scale=1.0)
            patches += patch
            scores += score.tolist()
        return label_map(patches, np.array(scores), self.example.layers.shape)

    def labels_of_regions(self, rois: np.ndarray, refine: bool) -> np.ndarray:
        """The label map of the regions that `detect` keeps, with masks of the resulting boxes."""
        found, nuclei = self.detect(rois, refine)
        boxes = self.boxes.copy()
        boxes[nuclei] = found[:, :4]
        return self.labels(found[:, :4], self.masks(boxes)[nuclei], found[:, 5])


def moved(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Boxes [N, 4] in input pixels, moved and stretched at random (LARGEST_...)."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centres = centres + rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, centres.shape)
    sizes = sizes * LARGEST_STRETCH ** rng.uniform(-1, 1, sizes.shape)
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)


def disturbed(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Boxes [N, 4] with edges as far off as a trained detector's."""
    sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return boxes + DETECTOR_ERROR * sizes * rng.normal(size=boxes.shape)


# --- scores -------------------------------------------------------------------------------


def step_labels(
    layers: np.ndarray, network: PerfectNetwork, rng: np.random.Generator
) -> list[np.ndarray]:
    """What each of STEPS makes of an image: the truth [H, W, L], then label maps [H, W]."""
    rois = network.normalise(moved(network.input_boxes, rng))
    poor = network.normalise(disturbed(network.input_boxes, rng))
    masks = layers_to_masks(layers, int(layers.max()))
    planes = [(0, 0, plane) for plane in np.moveaxis(masks, -1, 0)]
    flat = label_map(planes, np.arange(len(planes), 0, -1), layers.shape)
    boxes, scores = network.boxes, network.scores
    return [
        layers,
        flat,
        flat,  # through_csv is applied later
        network.labels_of_whole_masks(),
        network.labels(boxes, network.mini_masks.astype(np.float32), scores, scale=1.0),
        network.labels(boxes, network.masks(boxes), scores),
        network.labels_of_regions(rois, refine=True),
        network.labels_of_regions(rois, refine=False),
        network.labels_of_regions(poor, refine=False),
    ]


def through_csv(labels: list[np.ndarray], folder: str | Path) -> list[np.ndarray]:
    """Label maps [H, W] written to a submission file in the folder, and read again."""
    writer = SubmissionWriter(Path(folder) / "submit.csv")
    for number, map_ in enumerate(labels):
        writer.add(str(number), map_)
    writer.close()
    submission = Submission(writer.path)
    return [submission.labels(str(n), map_.shape) for n, map_ in enumerate(labels)]


def score_image(
    image: np.ndarray,
    layers: np.ndarray,
    class_ids: np.ndarray,
    config: Any,
    setting: Setting,
    seed: tuple[int, ...],
) -> tuple[list[float], np.ndarray]:
    """The scores of STEPS and CROP_STEPS on one image, and its `box_errors`.

    image [H, W, C]; layers int [H, W, L]; class_ids [N], N > 0; config: of training.
    """
    rng = np.random.default_rng(seed)
    scale = setting.scale(image, layers, class_ids, config, rng)

    def network(mode: str) -> PerfectNetwork:
        own = setting.configure(config, mode, len(class_ids))
        example = make_example(image, layers, class_ids, own, rng, scale=scale)
        return PerfectNetwork(example, own, rng)

    whole, crop = network("pad64"), network("crop")
    steps = step_labels(layers, whole, rng)
    with tempfile.TemporaryDirectory() as folder:
        steps[2:] = through_csv(steps[2:], folder)
    scores = [score(layers, labels) for labels in steps]
    for boxes in (crop.input_boxes, moved(crop.input_boxes, rng)):
        boxes = crop.normalise(boxes)
        if crop.count:
            found = crop.labels(boxes, crop.masks(boxes), crop.scores)
            scores.append(score(crop.example.layers, found))
        else:  # a part of the image without nuclei
            scores.append(1.0)
    return scores, box_errors(whole, rng)


def score(truth: np.ndarray, labels: np.ndarray) -> float:
    """The competition score of a label map [H, W] or layers [H, W, L] against layers."""
    return metrics.competition_score(iou_matrix(truth, labels))


def box_errors(network: PerfectNetwork, rng: np.random.Generator) -> np.ndarray:
    """Float [BOX_STEPS, N, 4]: the errors of the boxes in pixels of the image."""
    true = network.example.source_boxes()
    rois = network.normalise(moved(network.input_boxes, rng))
    std = constant(network.config.BBOX_STD_DEV)
    deltas = box_refinement_graph(constant(rois), constant(network.boxes)) / std
    refined = ops.convert_to_numpy(apply_box_deltas_graph(constant(rois), deltas * std))
    pixels = [network.to_image(boxes) for boxes in (network.boxes, refined)]
    return np.stack([*pixels, np.rint(pixels[-1])]) - true


# --- discs --------------------------------------------------------------------------------


def covered_by_disc(centre: np.ndarray, radius: float, side: int) -> np.ndarray:
    """Float [side, side]: the share of every pixel inside a disc; centre (y, x) in pixels."""
    points = (np.arange(side * SUBSAMPLES) + 0.5) / SUBSAMPLES
    inside = np.hypot(points[:, None] - centre[0], points - centre[1]) <= radius
    return inside.reshape(side, SUBSAMPLES, side, SUBSAMPLES).mean(axis=(1, 3))


def disc_errors(radius: float, config: Any, setting: Setting, seed: int) -> np.ndarray:
    """Mean over DISCS discs at random sub-pixel positions.

    Returns float [7]: IoU with the disc's pixels (those at least half inside it) in the true and
    in a moved box; mean signed error in image pixels of the centre's y and x and of the radius
    (of the true box's result, against the disc itself); and how far the middle of the enlarged
    image is from where boxes put it (y, x).
    """
    rng = np.random.default_rng([seed, round(1000 * radius)])
    side = 2 * int(np.ceil(radius)) + 16
    rows = []
    for _ in range(DISCS):
        centre = side / 2 + rng.uniform(-0.5, 0.5, 2)
        shares = covered_by_disc(centre, radius, side)
        truth = shares >= 0.5
        own = setting.configure(config, "pad64", 1)
        grey = np.repeat(np.rint(255 * shares)[..., None], config.IMAGE_CHANNEL_COUNT, axis=-1)
        image = grey.astype(np.uint8), truth[..., None].astype(np.int32), np.ones(1, np.int32)
        example = make_example(*image, own, rng, scale=setting.scale(*image, config, rng))
        network = PerfectNetwork(example, own, rng)
        results = []
        for boxes in (network.boxes, network.normalise(moved(network.input_boxes, rng))):
            labels = network.labels(boxes, network.masks(boxes), network.scores)
            results.append(labels > 0)
        overlaps = [(truth & mask).sum() / (truth | mask).sum() for mask in results]
        expected = centre * example.scales + example.window[:2]
        rows.append(
            [
                *overlaps,
                *(middle(results[0]) - centre),
                np.sqrt(results[0].sum() / np.pi) - radius,
                *(middle(example.image[..., 0]) - expected) / example.scales,
            ]
        )
    return np.mean(rows, axis=0)


def middle(weights: np.ndarray) -> np.ndarray:
    """The centre of mass (y, x) of [H, W] in pixels."""
    weights = np.asarray(weights, np.float64)
    return np.array(
        [
            np.average(np.arange(size) + 0.5, weights=weights.sum(axis=1 - axis))
            for axis, size in enumerate(weights.shape)
        ]
    )


# --- the command --------------------------------------------------------------------------


class Ceiling:
    """Collects images with `add`; the tables summarise them.

    config: of training; the settings override its convention, its way to crop images and, if they
    have one, its scale.
    """

    def __init__(self, config: Any, settings: list[Setting], seed: int = 0):
        self.config, self.settings, self.seed = config, settings, seed
        self.scores: list[list[list[float]]] = []  # [images, settings, steps]
        self.box_errors: list[list[np.ndarray]] = []  # [images, settings, BOX_STEPS, N, 4]

    def add(
        self, number: int, image: np.ndarray, layers: np.ndarray, class_ids: np.ndarray
    ) -> None:
        """Send an image through all settings. Images without nuclei are left out.

        number: seeds what is random; image [H, W, C]; layers int [H, W, L]; class_ids [N].
        """
        if not len(class_ids):
            return
        found = [
            score_image(image, layers, class_ids, self.config, setting, (self.seed, number))
            for setting in self.settings
        ]
        self.scores.append([scores for scores, _ in found])
        self.box_errors.append([errors for _, errors in found])

    def means(self) -> dict[str, dict[str, float]]:
        """{title of a setting: {step: mean score over the images}}."""
        means = np.mean(self.scores, axis=0).tolist()
        return {
            setting.title: dict(zip((*STEPS, *CROP_STEPS), row, strict=True))
            for setting, row in zip(self.settings, means, strict=True)
        }

    def score_table(self) -> str:
        """The score after each step, and what the step adds to the loss."""
        means, worst = self.means(), np.min(self.scores, axis=0)
        lines = [
            f"{'Competition score after':<30}" + "".join(f"{title:>22}" for title in means),
            f"{'':<30}" + f"{'score':>8}{'loss':>7}{'worst':>7}" * len(means),
        ]
        for number, step in enumerate((*STEPS, *CROP_STEPS)):
            cells = []
            for row, lowest in zip(means.values(), worst, strict=True):
                before = 1.0 if step in CROP_STEPS else row[STEPS[max(0, number - 1)]]
                cells.append(f"{row[step]:8.4f}{before - row[step]:7.4f}{lowest[number]:7.3f}")
            lines.append(f"{step:<30}" + "".join(cells))
        return "\n".join(lines)

    def box_table(self) -> str:
        """How far box edges are from where they were, in pixels of the image."""
        lines = [
            f"{'Error of box edges, pixels':<30}"
            + "".join(f"{setting.title:>22}" for setting in self.settings),
            f"{'':<30}" + f"{'mean':>8}{'size':>7}{'worst':>7}" * len(self.settings),
        ]
        pooled = [np.concatenate(errors, axis=1) for errors in zip(*self.box_errors, strict=True)]
        for number, step in enumerate(BOX_STEPS):
            cells = (
                f"{e[number].mean():8.4f}{np.abs(e[number]).mean():7.4f}"
                f"{np.abs(e[number]).max():7.3f}"
                for e in pooled
            )
            lines.append(f"{step:<30}" + "".join(cells))
        return "\n".join(lines)

    def disc_table(self, setting: Setting) -> str:
        """`disc_errors` of RADII."""
        lines = [
            f"{'Discs, ' + setting.title:<22}{'IoU':>8}{'moved':>8}{'centre y':>10}{'x':>8}"
            f"{'radius':>8}{'image y':>11}{'x':>8}"
        ]
        for radius in RADII:
            row = disc_errors(radius, self.config, setting, self.seed)
            lines.append(
                f"{f'radius {radius} pixels':<22}{row[0]:8.4f}{row[1]:8.4f}"
                f"{row[2]:10.4f}{row[3]:8.4f}{row[4]:8.4f}{row[5]:11.4f}{row[6]:8.4f}"
            )
        return "\n".join(lines)


def run_ceiling(
    dataset, config: Any, settings: list[Setting], limit: int | None = None, seed: int = 0
) -> Ceiling:
    """Measure the ceiling on a labelled data set and print it.

    Raises UserError if no image has nuclei. Ctrl-C prints the tables of what is done so far.
    """
    ceiling = Ceiling(config, settings, seed)
    numbers = list(dataset.image_ids)[:limit]
    try:
        with Progress(len(numbers), "ceiling") as progress:
            for number in numbers:
                layers, class_ids = dataset.load_layers(number)
                ceiling.add(number, dataset.load_image(number), layers, class_ids)
                progress.step()
    finally:
        if ceiling.scores:
            print(
                f"{len(ceiling.scores)} images\n\n{ceiling.score_table()}\n\n{ceiling.box_table()}"
            )
    if not ceiling.scores:
        raise UserError(f"none of the {len(numbers)} images has a nucleus")
    for setting in settings:
        print(f"\n{ceiling.disc_table(setting)}")
    return ceiling


def enlargement(text: str) -> float:
    """argparse type: a number from 1 to 16."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 16")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ceiling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", metavar="DIR", required=True)
    add("--subset", metavar="NAME", required=True, help="as for nucleus.py evaluate")
    add(
        "--scale",
        type=enlargement,
        metavar="Z",
        help="enlarge all images by this factor (default: by the size of their nuclei as "
        "configured, 2, and random factors from 1 to 4)",
    )
    add(
        "--convention",
        choices=("exact", "matterport"),
        help="PIXEL_CONVENTION (default: both)",
    )
    add(
        "--mask-roi-scale",
        type=enlargement,
        default=NucleusConfig.MASK_ROI_SCALE,
        metavar="S",
        help="MASK_ROI_SCALE, how much larger mask regions are than boxes (default: %(default)s)",
    )
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="random seed for crops, scales and moved boxes (default: %(default)s)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        dataset = load_dataset(options.dataset, options.subset, labelled=True)
        config = NucleusConfig()
        config.MASK_ROI_SCALE = options.mask_roi_scale
        scales = [(options.scale, options.scale)] if options.scale else [(2.0, 2.0), (1.0, 4.0)]
        conventions = [options.convention] if options.convention else ["exact", "matterport"]
        ways = [Setting(name, limits) for name in conventions for limits in scales]
        if not options.scale:
            ways.insert(0, Setting(options.convention or config.PIXEL_CONVENTION))
        run_ceiling(dataset, config, ways, options.limit, options.seed)

    return exit_code("ceiling.py", work)


if __name__ == "__main__":
    sys.exit(main())
