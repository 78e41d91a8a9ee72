"""Mask R-CNN on random shapes: squares, circles and triangles, drawn as they are needed.

No download, small images: a way to see the package at work, and a template for a data set of your
own. From any directory:

    # Train from random, ImageNet or COCO weights, or resume the last run
    python samples/shapes/shapes.py train --weights none
    python samples/shapes/shapes.py train --weights imagenet --epochs 4
    python samples/shapes/shapes.py train --weights last --epochs 8

    # Detect shapes in new random images and draw what was found
    python samples/shapes/shapes.py detect --weights last --count 4 --output shapes_found
"""

import argparse
import os
import sys

import numpy as np
from skimage import draw

# The repository's own package, wherever this is started from.
ROOT_DIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)

import mrcnn.model as modellib  # noqa: E402
from mrcnn import utils, visualize  # noqa: E402
from mrcnn.config import Config  # noqa: E402
from mrcnn.errors import UserError  # noqa: E402
from mrcnn.weights.download import resolve_weights  # noqa: E402

DEFAULT_LOGS_DIR = os.path.join(ROOT_DIR, "logs")

# In pixels: the least distance of a shape's centre from the border, and its least half width.
MARGIN = 20


class ShapesConfig(Config):
    """Small images, few shapes each: small anchors and few regions of interest suffice."""

    NAME = "shapes"
    IMAGES_PER_GPU = 8
    NUM_CLASSES = 1 + 3  # background and three shapes
    IMAGE_MIN_DIM = 128
    IMAGE_MAX_DIM = 128
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)  # side in pixels
    TRAIN_ROIS_PER_IMAGE = 32
    MAX_GT_INSTANCES = 8
    STEPS_PER_EPOCH = 100
    VALIDATION_STEPS = 5


class InferenceConfig(ShapesConfig):
    """One image at a time."""

    IMAGES_PER_GPU = 1


class ShapesDataset(utils.Dataset):
    """Images of one to four shapes on a plain background. Only what to draw is stored."""

    def load_shapes(self, count: int, height: int, width: int, seed: int = 0) -> None:
        """Make up `count` images of height x width pixels; the same ones for the same seed.

        Raises UserError if the images are too small for shapes.
        """
        if min(height, width) < 4 * MARGIN:
            raise UserError(f"{height} x {width} images: shapes need {4 * MARGIN} pixels or more")
        self.add_class("shapes", 1, "square")
        self.add_class("shapes", 2, "circle")
        self.add_class("shapes", 3, "triangle")
        rng = np.random.default_rng(seed)
        for i in range(count):
            background, shapes = self.random_image(rng, height, width)
            self.add_image(
                "shapes",
                image_id=i,
                path=None,
                width=width,
                height=height,
                bg_color=background,
                shapes=shapes,
            )

    def load_image(self, image_id: int) -> np.ndarray:
        """Draw the image, uint8 [H, W, 3]; later shapes cover earlier ones."""
        info = self.image_info[image_id]
        image = np.empty((info["height"], info["width"], 3), np.uint8)
        image[:] = info["bg_color"]
        for shape, color, dims in info["shapes"]:
            image[self.shape_mask(image.shape, shape, dims)] = color
        return image

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """The visible part of each shape, bool [H, W, N], and class ids, int32 [N]."""
        info = self.image_info[image_id]
        shape = (info["height"], info["width"])
        masks = [self.shape_mask(shape, name, dims) for name, _, dims in info["shapes"]]
        covered = np.zeros(shape, bool)
        for mask in reversed(masks):
            visible = mask & ~covered
            covered |= mask
            mask[:] = visible
        class_ids = [self.class_names.index(name) for name, _, _ in info["shapes"]]
        return np.stack(masks, axis=-1), np.array(class_ids, np.int32)

    def image_reference(self, image_id: int):
        """What is drawn in the image: a list of (name, colour, (x, y, half width))."""
        info = self.image_info[image_id]
        if info["source"] == "shapes":
            return info["shapes"]
        return super().image_reference(image_id)

    @staticmethod
    def shape_mask(image_shape, name: str, dims) -> np.ndarray:
        """Pixels of one shape, bool [H, W]. dims: x, y of the centre and the half width s."""
        x, y, s = dims
        mask = np.zeros(image_shape[:2], bool)
        if name == "square":
            pixels = draw.rectangle((y - s, x - s), (y + s, x + s), shape=mask.shape)
        elif name == "circle":
            pixels = draw.disk((y, x), s + 0.5, shape=mask.shape)
        else:
            half_base = s / np.sin(np.radians(60))
            pixels = draw.polygon(
                [y - s, y + s, y + s], [x, x - half_base, x + half_base], shape=mask.shape
            )
        mask[tuple(pixels)] = True
        return mask

    @staticmethod
    def random_shape(rng: np.random.Generator, height: int, width: int):
        """(name, RGB colour, (x, y, s)) of a random shape, its centre inside the image."""
        name = str(rng.choice(["square", "circle", "triangle"]))
        color = tuple(int(c) for c in rng.integers(0, 256, 3))
        x = int(rng.integers(MARGIN, width - MARGIN))
        y = int(rng.integers(MARGIN, height - MARGIN))
        s = int(rng.integers(MARGIN, max(MARGIN, min(height, width) // 4) + 1))
        return name, color, (x, y, s)

    def random_image(self, rng: np.random.Generator, height: int, width: int):
        """Background colour and one to four shapes, none covering much of another."""
        background = tuple(int(c) for c in rng.integers(0, 256, 3))
        shapes = [self.random_shape(rng, height, width) for _ in range(rng.integers(1, 5))]
        boxes = np.array([(y - s, x - s, y + s, x + s) for _, _, (x, y, s) in shapes])
        # The later a shape is drawn, the more of it is visible: it wins.
        kept = utils.non_max_suppression(boxes, np.arange(len(shapes)), 0.3)
        return background, [shapes[i] for i in sorted(kept)]


def shapes_dataset(count: int, config: Config, seed: int) -> ShapesDataset:
    """A prepared data set of `count` images of the configuration's size."""
    dataset = ShapesDataset()
    dataset.load_shapes(count, config.IMAGE_SHAPE[0], config.IMAGE_SHAPE[1], seed=seed)
    dataset.prepare()
    return dataset


def train(model, epochs: int = 2, layers: str = "all", images: int = 500, seed: int = 0) -> None:
    """Train on random shapes until `epochs` are done; validate on 50 others."""
    model.train(
        shapes_dataset(images, model.config, seed),
        shapes_dataset(50, model.config, seed + 1),
        learning_rate=model.config.LEARNING_RATE,
        epochs=epochs,
        layers=layers,
    )


def detect(model, output: str, count: int = 4, seed: int = 2) -> list[dict]:
    """Detect shapes in new random images; writes a picture of each into the folder `output`.

    Returns the results of `model.detect`, one per image.
    """
    import matplotlib.pyplot as plt

    dataset = shapes_dataset(count, model.config, seed)
    os.makedirs(output, exist_ok=True)
    results = []
    for image_id in dataset.image_ids:
        image = dataset.load_image(image_id)
        (result,) = model.detect([image])
        figure, axes = plt.subplots(figsize=(6, 6))
        visualize.display_instances(
            image, result["rois"], result["masks"], result["class_ids"], dataset.class_names,
            result["scores"], ax=axes, title=f"{len(result['rois'])} shapes found",
        )  # fmt: skip
        figure.savefig(os.path.join(output, f"shapes_{image_id:03d}.png"))
        plt.close(figure)
        results.append(result)
    return results


def load_weights(model, weights: str) -> None:
    """Load "none", "last", "imagenet", "coco" or a file into the model."""
    if weights == "none":
        return
    if weights == "last":
        model.load_weights(model.find_last(), by_name=True)
    elif weights == "imagenet":
        model.load_weights(model.get_imagenet_weights(), by_name=True)
    elif weights == "coco":
        # The COCO model has other classes: the layers that depend on them start from scratch.
        heads = ["mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_bbox", "mrcnn_mask"]
        model.load_weights(resolve_weights("coco"), by_name=True, exclude=heads)
    else:
        model.load_weights(weights, by_name=True)


def parse_arguments(arguments=None) -> argparse.Namespace:
    """The command line; see the top of this file for examples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["train", "detect"])
    parser.add_argument(
        "--weights",
        required=True,
        help='"none" (train only), "last", "imagenet", "coco" or a .h5 file',
    )
    parser.add_argument(
        "--logs",
        default=DEFAULT_LOGS_DIR,
        metavar="DIR",
        help="logs and checkpoints (default: logs/ of the repository)",
    )
    parser.add_argument("--epochs", type=int, default=2, help="epochs in total, with finished ones")
    parser.add_argument("--steps", type=int, help="batches per epoch")
    parser.add_argument("--layers", default="all", help='"heads", "3+", "4+", "5+" or "all"')
    parser.add_argument("--count", type=int, default=4, help="number of images to detect in")
    parser.add_argument(
        "--output", default="shapes_found", metavar="DIR", help="where detect puts its pictures"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    """Run the command line; returns the exit code: 0, 2 for errors, 130 after Ctrl-C."""
    args = parse_arguments(arguments)
    try:
        if args.command == "detect" and args.weights == "none":
            raise UserError("detect needs trained weights: --weights last or a file")
        config = ShapesConfig() if args.command == "train" else InferenceConfig()
        config.SEED = args.seed
        if args.steps is not None:
            config.STEPS_PER_EPOCH = args.steps
        mode = "training" if args.command == "train" else "inference"
        model = modellib.MaskRCNN(mode=mode, config=config, model_dir=args.logs)
        load_weights(model, args.weights)
        if args.command == "train":
            train(model, args.epochs, args.layers, seed=args.seed)
        else:
            # Seeds of training and validation are args.seed and args.seed + 1: these are new.
            results = detect(model, args.output, args.count, args.seed + 2)
            for number, result in enumerate(results):
                print(f"image {number}: {len(result['rois'])} shapes")
            print(f"pictures are in {os.path.abspath(args.output)}")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
