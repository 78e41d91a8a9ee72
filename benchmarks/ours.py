"""This package as a contestant: configurations, models, and a worker process.

    python benchmarks/ours.py        answers requests, see workers.py

Only mrcnn's public interface is used.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)

from benchmarks import networks, scenes, workers  # noqa: E402
from mrcnn.config import Config  # noqa: E402
from mrcnn.data.dataset import Dataset  # noqa: E402

NUCLEUS_WEIGHTS = Path(ROOT_DIR, "weights", "mask_rcnn_nucleus.h5")
COMPARISON_WEIGHTS = Path(ROOT_DIR, "benchmarks", ".cache", "ours.h5")


class ComparisonConfig(Config):
    """The network of networks.py on square images that are not enlarged."""

    NAME = "comparison"
    NUM_CLASSES = networks.OURS.classes
    BACKBONE = "resnet50"
    IMAGES_PER_GPU = 1
    IMAGE_RESIZE_MODE = "pad64"
    IMAGE_MIN_DIM = 0
    IMAGE_MAX_DIM = 512
    PIXEL_CONVENTION = "exact"
    MEAN_PIXEL = [networks.MEAN_LEVEL] * 3
    TRAIN_BN = False
    TOP_DOWN_PYRAMID_SIZE = networks.OURS.pyramid
    RPN_CONV_CHANNELS = networks.OURS.rpn
    FPN_CLASSIF_FC_LAYERS_SIZE = networks.OURS.box
    MASK_CONV_CHANNELS = networks.OURS.mask
    RPN_ANCHOR_SCALES = networks.ANCHOR_SIDES
    RPN_ANCHOR_RATIOS = networks.ANCHOR_RATIOS
    RPN_NMS_THRESHOLD = networks.RPN_NMS
    PRE_NMS_LIMIT = networks.candidates(512)
    POST_NMS_ROIS_TRAINING = POST_NMS_ROIS_INFERENCE = networks.PROPOSALS
    DETECTION_MAX_INSTANCES = networks.MAX_DETECTIONS
    DETECTION_MIN_CONFIDENCE = networks.MIN_CONFIDENCE
    DETECTION_NMS_THRESHOLD = networks.DETECTION_NMS
    TRAIN_ROIS_PER_IMAGE = networks.TRAIN_ROIS
    ROI_POSITIVE_RATIO = networks.POSITIVE_SHARE
    RPN_TRAIN_ANCHORS_PER_IMAGE = networks.TRAIN_ANCHORS
    TRAIN_GT_AS_ROIS = True  # as torchvision does
    WEIGHT_DECAY = networks.WEIGHT_DECAY
    LEARNING_MOMENTUM = networks.MOMENTUM
    GRADIENT_CLIP_NORM = None


class LessonConfig(ComparisonConfig):
    """The same network, learning from small images until it finds the objects."""

    IMAGES_PER_GPU = networks.LESSON_BATCH
    IMAGE_RESIZE_MODE = "square"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = scenes.LESSON_SIDE
    PRECISION = "auto"
    TRAIN_ROIS_PER_IMAGE = networks.LESSON_ROIS
    TRAIN_BN = None
    OPTIMIZER = "adam"
    LEARNING_WARMUP_STEPS = 20
    GRADIENT_CLIP_NORM = 5.0
    STEPS_PER_EPOCH = 1000


def configuration(widths: str, **overrides) -> Config:
    """A configuration by name, "comparison", "lesson" or "nucleus" (the application's own for
    detection, at twice the size), with some keys changed."""
    from samples.nucleus.nucleus import NucleusInferenceConfig

    class FixedScale(NucleusInferenceConfig):
        """One forward pass at a known scale: its cost must not depend on what the network finds."""

        OBJECT_SIZE = None
        IMAGE_MIN_SCALE = 2.0

    kinds = {
        "comparison": ComparisonConfig,
        "lesson": LessonConfig,
        "nucleus": FixedScale,
    }
    return type("BenchmarkConfig", (kinds[widths],), overrides)()


def training_overrides(batch: int, side: int) -> dict:
    """Keys for a training step on `batch` images of side x side pixels, not enlarged."""
    return {
        "IMAGES_PER_GPU": batch,
        "IMAGE_RESIZE_MODE": "square",
        "IMAGE_MIN_DIM": side,
        "IMAGE_MAX_DIM": side,
        "IMAGE_MIN_SCALE": 0,
    }


def network_of(config: Config) -> networks.Network:
    """The widths of a configuration, for counting multiply-adds."""
    return networks.Network(
        config.TOP_DOWN_PYRAMID_SIZE, config.RPN_CONV_CHANNELS, config.FPN_CLASSIF_FC_LAYERS_SIZE,
        config.MASK_CONV_CHANNELS, config.NUM_CLASSES, proposals=config.POST_NMS_ROIS_INFERENCE,
    )  # fmt: skip


def weights_of(widths: str) -> Path:
    """The trained weights of "comparison" or "nucleus". Raises WorkerError if there are none."""
    path = NUCLEUS_WEIGHTS if widths == "nucleus" else COMPARISON_WEIGHTS
    if not path.is_file():
        hint = "" if widths == "nucleus" else "; make them: python benchmarks/compare.py --prepare"
        raise workers.WorkerError(f"no weights {path}{hint}")
    return path


def make_detector(config: Config, weights: str | Path | None = None):
    """A MaskRCNN for detection."""
    from mrcnn.model import MaskRCNN

    model = MaskRCNN("inference", config, tempfile.gettempdir())
    if weights:
        model.load_weights(str(weights), by_name=True)
    return model


def make_trainer(
    config: Config,
    layers: str = "all",
    rate: float = networks.STEP_SIZE,
    weights: str | Path | None = None,
):
    """A MaskRCNN whose `keras_model.train_on_batch` trains the layers "all" or "heads"."""
    from mrcnn.model import MaskRCNN
    from mrcnn.training.fit import LAYER_REGEX

    model = MaskRCNN("training", config, tempfile.gettempdir())
    if weights:
        model.load_weights(str(weights), by_name=True)
    model.set_trainable(LAYER_REGEX[layers], verbose=0)
    model.compile(rate)
    return model


class SceneDataset(Dataset):
    """Scenes as a data set."""

    def __init__(self, drawn: list[scenes.Scene]):
        super().__init__()
        self.add_class("scenes", 1, "object")
        for scene in drawn:
            self.add_image("scenes", image_id=str(scene.seed), path=None, scene=scene)
        self.prepare()

    def load_image(self, image_id):
        return scenes.draw(self.image_info[image_id]["scene"])[0]

    def load_layers(self, image_id):
        import numpy as np

        labels = scenes.draw(self.image_info[image_id]["scene"])[1]
        return labels[..., None], np.ones(labels.max(), np.int32)


def make_batch(config: Config, drawn: list[scenes.Scene]):
    """One training batch of scenes, as `train_on_batch` takes it."""
    from mrcnn.data.batches import BatchLoader

    return BatchLoader(SceneDataset(drawn), config)[0][0]


# ---- The worker ------------------------------------------------------------------------------


class Contestant:
    """The state of a worker process; its public methods are what it can be asked to do."""

    def __init__(self):
        self.detector = self.trainer = self.batch = None

    def versions(self) -> dict:
        import keras
        import numpy
        import tensorflow

        return {
            "TensorFlow": tensorflow.__version__,
            "Keras": keras.__version__,
            "NumPy": numpy.__version__,
        }

    def load_detector(self, widths: str, weights: str, **overrides) -> dict:
        self.detector = make_detector(configuration(widths, **overrides), weights)
        return {}

    def detect(self, scene: list) -> dict:
        """One timed detection: image in, full-size masks out."""
        image = scenes.image_of(scene)
        seconds, result = workers.timed(lambda: self.detector.detect([image])[0])
        return {"seconds": seconds, "detections": len(result["scores"])}

    def load_trainer(self, widths: str, weights: str, scene: list, batch: int, **overrides) -> dict:
        config = configuration(widths, **training_overrides(batch, scene[0]), **overrides)
        self.trainer = make_trainer(config, weights=weights)
        self.batch = make_batch(config, [scenes.from_json(scene)])
        return {}

    def step(self) -> dict:
        """One timed training step."""
        model = self.trainer.keras_model
        seconds, loss = workers.timed(lambda: model.train_on_batch(self.batch))
        return {"seconds": seconds, "loss": float(loss[0] if isinstance(loss, list) else loss)}

    def tune(self, what: str, scene: list | None = None) -> dict:
        """Nothing to choose here (torchvision has a memory layout to choose)."""
        return {"layout": "NHWC"}

    def memory(self) -> dict:
        return {"peak": workers.peak_memory()}

    def matrix_rate(self, precision: str, side: int) -> dict:
        """FLOP/s of a product of two square matrices."""
        import tensorflow as tf

        matrix = tf.random.stateless_normal((side, side), (0, 1), dtype=precision)
        seconds, _ = workers.timed(lambda: tf.linalg.matmul(matrix, matrix)[0, 0].numpy())
        return {"rate": 2 * side**3 / seconds}

    def convolution_rate(self, precision: str, side: int, channels: int) -> dict:
        """FLOP/s of a 3x3 convolution."""
        import tensorflow as tf

        shape = (1, side, side, channels)
        image = tf.random.stateless_normal(shape, (0, 1), dtype=precision)
        kernel = tf.random.stateless_normal((3, 3, channels, channels), (0, 2), dtype=precision)
        seconds, _ = workers.timed(
            lambda: tf.nn.conv2d(image, kernel, 1, "SAME")[0, 0, 0, 0].numpy()
        )
        return {"rate": 2 * side**2 * 9 * channels**2 / seconds}

    def start_lessons(self) -> dict:
        """Begin to train new weights for the comparison."""
        self.lessons = configuration("lesson")
        self.trainer = make_trainer(self.lessons, rate=1e-3)
        for layer in self.trainer.keras_model._flatten_layers():
            if hasattr(layer, "momentum"):
                layer.momentum = 0.9  # statistics that keep up with a short training
        from mrcnn.data.batches import BatchLoader

        drawn = [scenes.training_scene(seed) for seed in range(400)]
        self.loader = BatchLoader(SceneDataset(drawn), self.lessons)
        self.lesson = 0
        return {}

    def learn(self, steps: int) -> dict:
        """Some steps of training."""
        loss = 0.0
        for _ in range(steps):
            result = self.trainer.keras_model.train_on_batch(self.loader[self.lesson][0])
            loss = float(result[0] if isinstance(result, list) else result)
            self.lesson += 1
        return {"loss": loss}

    def save_lessons(self, path: str) -> dict:
        self.trainer.save_weights(path)
        return {}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")  # an untrained network finds too much
    workers.serve(Contestant())
