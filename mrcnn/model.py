"""`MaskRCNN`: build the network, load weights, train, detect. The module users import.

It also has every public name of matterport's `mrcnn.model`; `matterport.names` lists them.
docs/architecture.md lists the parts in reading order.
"""

import copy
from pathlib import Path
from typing import Any, Self

from mrcnn.environment import check_keras, check_process, claim_process

check_keras()  # before Keras is imported, whose own errors name no remedy

import keras
import numpy as np

from mrcnn.atomic import LOCK, locked
from mrcnn.config import Config
from mrcnn.errors import UserError
from mrcnn.inference import detector, given_proposals
from mrcnn.inference.fast_network import FastNetwork
from mrcnn.matterport import names
from mrcnn.matterport.compat import log
from mrcnn.matterport.inspection import Inspection
from mrcnn.matterport.names import *  # noqa: F403
from mrcnn.network.anchors import image_anchors, normalized_anchors
from mrcnn.network.defaults import keras_defaults
from mrcnn.network.layers import LayerBank
from mrcnn.network.models import inference_model, training_inputs, training_outputs
from mrcnn.network.precision import dtype_policy
from mrcnn.pixels import molding, unmolding
from mrcnn.training import checkpoints, devices, fit, run
from mrcnn.weights import weight_files
from mrcnn.weights.download import resolve_weights

__all__ = ["MaskRCNN", *names.__all__]


class MaskRCNN(Inspection):
    """Mask R-CNN (matterport's class).

    Attributes:
        keras_model: the functional model for `config.IMAGE_SHAPE`, which holds the weights.
            Detection runs a faster form of it on images of any shape, see `fast_network`.
        epoch: epochs trained so far.
        seconds: time trained so far, validation and checkpoints included.
        log_dir: folder that training writes into.
        checkpoint_path: its checkpoints, {epoch:04d} for the epoch.
    """

    def __init__(self, mode: str, config, model_dir: str, first_values: bool = True):
        """
        Args:
            mode: "training" or "inference".
            config: a `Config`; it is validated again.
            model_dir: logs and checkpoints go into a folder below it, one per run.
            first_values: False leaves kernels at zero, which saves the time for random numbers
                where a weight file that holds all layers is loaded next.

        Raises:
            UserError: a wrong mode or configuration; this process was forked from one that has a
                network.
        """
        if mode not in ("training", "inference"):
            raise UserError(f'mode = {mode!r} is not allowed: "training" or "inference"')
        config.validate()
        if mode == "inference" and config.IMAGE_RESIZE_MODE == "crop":
            raise UserError(
                'IMAGE_RESIZE_MODE = "crop" is for training only: use "pad64", "square" or "none" '
                "for inference"
            )
        self.mode = mode
        self.config = config
        self.model_dir = str(model_dir)
        claim_process()
        self._network: FastNetwork | None = None
        self._anchors: tuple[tuple[int, ...], np.ndarray] | None = None
        self._resume: dict | None = None
        self.proposer = None  # see `alternating`
        self.set_log_dir()
        keras.utils.set_random_seed(config.SEED)
        self.bank = LayerBank(dtype_policy(config.PRECISION), zeros=not first_values)
        self.keras_model = self.build(mode, config)

    # ---- Building and copying --------------------------------------------------------------

    @keras_defaults()
    def build(self, mode: str, config, image_shape=None) -> keras.Model:
        """The Keras model for one image shape, `config.IMAGE_SHAPE` by default."""
        shape = tuple(int(n) for n in (config.IMAGE_SHAPE if image_shape is None else image_shape))
        if image_shape is None and config.IMAGE_RESIZE_MODE in ("none", "pad64"):
            # Images have shapes of their own; this is the initial one.
            shape = (-(-shape[0] // 64) * 64, -(-shape[1] // 64) * 64, shape[2])
        detector.check_sides(shape)
        if mode == "inference":
            return inference_model(config, self.bank, shape)
        devices.check(config.GPU_COUNT, config.BATCH_SIZE)
        with devices.scope(config.GPU_COUNT):
            inputs = training_inputs(config, shape)
            outputs = training_outputs(inputs, config, self.bank, shape)
            model = fit.TrainingModel(inputs, outputs, config, name="mask_rcnn_training")
        devices.synchronize_batch_norms(model, config.GPU_COUNT)
        return model

    def __copy__(self) -> Self:
        """Another model of the same layers and weights, which may get a `config` of its own."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __reduce__(self) -> tuple:
        """What pickle and deepcopy make the model from: configuration and weights.

        Raises UserError for a model in "training" mode, whose optimizer would be left out, and for
        one that lacks weights.
        """
        if self.mode != "inference":
            raise UserError(
                'a MaskRCNN(mode="training", ...) cannot be copied or pickled: use save_weights, '
                "and load_weights in a new one"
            )
        self.check_weights()
        keys = {key: getattr(self.config, key) for key in self.config.to_dict()}
        return _restored, (type(self), keys, self.model_dir, self.keras_model.get_weights())

    def get_anchors(self, image_shape) -> np.ndarray:
        """Anchors of an image shape, float32 [A, 4], normalised; `anchors` has them in pixels."""
        shape = tuple(int(n) for n in image_shape)
        if self._anchors is None or self._anchors[0] != shape:
            self.anchors = image_anchors(self.config, shape)
            self._anchors = shape, normalized_anchors(self.config, shape)
        return self._anchors[1]

    # ---- Weights and log folders -------------------------------------------------------------

    def load_weights(
        self, filepath, by_name: bool = False, exclude=None
    ) -> weight_files.LoadReport:
        """Load a weight file of any origin, and verify it; see `weights.load_weights`.

        A checkpoint that training wrote sets `epoch` and `log_dir`, and the next `train` resumes
        where it stopped, optimizer state included. A model for inference whose layers a file
        fills only in part can detect once further files have filled the others.

        Args:
            filepath: .h5 file.
            by_name: False demands that file and model have the same layers.
            exclude: names of layers to leave as they are; implies `by_name`.

        Returns:
            A `LoadReport` of what was loaded, left over and left as it was.

        Raises:
            UserError: the file cannot be read or does not fit.
        """
        filepath = str(filepath)
        by_name = by_name or bool(exclude) or weight_files.is_imagenet_file(filepath)
        report = weight_files.load_weights(
            self.keras_model, filepath, by_name=by_name, exclude=exclude
        )
        if self.mode == "inference":
            self.bank.unfilled = weight_files.values_left(
                self.keras_model, report.initial, self.bank.unfilled
            )
        self.set_log_dir(filepath)
        return report

    def check_weights(self) -> None:
        """Raise UserError where weight files were loaded but have left layers as they were.

        A model into which no file was loaded is not checked, nor are layers that got their
        weights in another way.
        """
        weight_files.demand_changed(self.keras_model, self.bank.unfilled or {})

    def save_weights(self, filepath, half: bool = False) -> None:
        """Write the weights in matterport's file layout, atomically; `half` in float16."""
        weight_files.save_weights(self.keras_model, str(filepath), half=half)

    def find_last(self) -> str:
        """Path of the newest checkpoint; see `checkpoints.find_last`."""
        return checkpoints.find_last(self.model_dir, self._name())

    def get_imagenet_weights(self) -> str:
        """Path of the public ImageNet ResNet-50 weights, downloaded when they are not cached."""
        return resolve_weights("imagenet")

    def set_log_dir(self, model_path: str | None = None) -> None:
        """Start a new run, or resume with the run that a checkpoint's path belongs to.

        See `checkpoints.run_at` for checkpoints of another experiment.
        """
        resumes = self.mode == "training"
        found = checkpoints.run_at(self.model_dir, self._name(), model_path, resumes)
        folder, self.epoch, self.seconds, self._resume = found
        self._has_folder = checkpoints.run_of(model_path) is not None
        self._write_into(folder)

    def claim_log_dir(self) -> None:
        """Make a folder for a new run that no other run has: `log_dir`, if it is free. A resumed
        run, and one that has a folder, keeps it."""
        if self._has_folder or not devices.is_chief():
            return
        self._has_folder = True
        if Path(self.log_dir).is_dir() and not (Path(self.log_dir) / LOCK).exists():
            return  # its owner has made it
        folder = checkpoints.claim_run_folder(self.model_dir, self._name(), self.log_dir)
        self._write_into(folder)

    def _write_into(self, folder: Path) -> None:
        self.log_dir = str(folder)
        self.checkpoint_path = checkpoints.checkpoint_path(folder, self._name())

    @property
    def output_dir(self) -> str:
        """Where this process writes: `log_dir`; where several processes train together, all but
        the first have a folder that is removed when they end."""
        return self.log_dir if devices.is_chief() else str(devices.scratch_folder())

    @property
    def resumed_layers(self) -> str | None:
        """The `layers` of the stage that a loaded checkpoint resumes with, until `train` does so;
        None without the state of such a checkpoint."""
        return self._resume["stage"]["layers"] if self._resume else None

    def _name(self) -> str:
        return (self.config.NAME or "mask_rcnn").lower()

    # ---- Training ----------------------------------------------------------------------------

    def set_trainable(self, layer_regex, keras_model=None, indent=0, verbose=1) -> None:
        """Make only the layers whose names match trainable (matterport's method)."""
        names = fit.set_trainable(keras_model or self.keras_model, layer_regex)
        if verbose:
            log(f"Training {len(names)} layers")

    def compile(
        self, learning_rate: float, momentum: float | None = None, total_steps: int | None = None
    ):
        """Get the model ready for training; may be called repeatedly.

        total_steps: the steps that the learning rate's schedule is for; None: no schedule.
        """
        config = self.config
        if momentum is not None and momentum != config.LEARNING_MOMENTUM:
            config = copy.copy(config)
            config.LEARNING_MOMENTUM = momentum
        with devices.scope(config.GPU_COUNT):
            optimizer = fit.make_optimizer(config, learning_rate, total_steps)
            fit.compile_model(self.keras_model, optimizer)

    @keras_defaults()
    def train(
        self,
        train_dataset,
        val_dataset,
        learning_rate,
        epochs,
        layers,
        augmentation=None,
        custom_callbacks=None,
        no_augmentation_sources=None,
        freeze_bn=False,
        time_budget=None,
        losses=None,
    ):
        """Train one stage.

        With WEIGHT_AVERAGING the model holds the average when this returns, as the checkpoints
        do, and another stage starts from it.

        Args:
            train_dataset: a prepared `Dataset`.
            val_dataset: another one, or None.
            learning_rate: of this stage, before warm-up and schedule.
            epochs: total epochs at the end of the stage, those of earlier stages included; a
                stage that is done already is skipped.
            layers: "heads", "3+", "4+", "5+", "all", or a regular expression of layer names.
            augmentation: see `augment`; imgaug augmenters work too.
            custom_callbacks: Keras callbacks.
            no_augmentation_sources: names of sources that are not augmented.
            freeze_bn: this stage leaves the statistics of the batch norms as they are and uses
                them, as TRAIN_BN = False does; their scales and offsets train with their layers.
            time_budget: total seconds of training at the end of the stage, those of earlier stages
                and of the resumed run included; LEARNING_SCHEDULE ends with them. The
                stage ends by time or by epochs, whichever is first. The last epoch is cut short.
            losses: names of the losses that count in this stage; None for all.

        Raises:
            UserError: wrong data, or a loss that is not finite.
        """
        if self.mode != "training":
            raise UserError('train() needs MaskRCNN(mode="training", ...)')
        check_process()
        if self.config.NAME is None:
            raise UserError("NAME = None is not allowed for training: logs are named after it")
        if run.is_done(self, epochs, time_budget):
            return
        losses = None if losses is None else sorted(losses)
        asked = run.Asked(
            layers, float(learning_rate), int(epochs), bool(freeze_bn), time_budget, losses
        )
        stage = run.StageRun(self, asked)
        stage.load(train_dataset, val_dataset, augmentation, no_augmentation_sources)
        self.claim_log_dir()
        count = self.config.GPU_COUNT
        with locked(self.output_dir, again=True), devices.scope(count, stage.remains):
            stage.prepare()
            stage.fit(custom_callbacks or ())

    # ---- Detection ---------------------------------------------------------------------------

    def mold_inputs(self, images):
        """Images to network input; see `molding.mold_inputs`."""
        return molding.mold_inputs(images, self.config)

    def unmold_detections(self, detections, mrcnn_mask, original_image_shape, image_shape, window):
        """Network output of one image to boxes, class ids, scores and masks of the image."""
        return unmolding.unmold_detections(
            detections, mrcnn_mask, original_image_shape, image_shape, window, self.config
        )

    def detect(self, images, verbose: int = 0) -> list[dict]:
        """Detect the objects in any number of images of any sizes.

        Args:
            images: list of [H, W, C] arrays with values 0 to 255.
            verbose: 1 prints the inputs.

        Returns:
            For every image, in order, a dictionary with rois int32 [N, 4] in pixels, class_ids
            int32 [N], scores float32 [N] and masks bool [H, W, N].
        """
        if verbose:
            log(f"Processing {len(images)} images")
            for image in images:
                log("image", image)
        return [
            detector.with_masks(found, image.shape)
            for found, image in zip(self.detect_patches(images), images, strict=True)
        ]

    @keras_defaults()
    def detect_patches(self, images, probabilities: bool = False, scales=None) -> list[dict]:
        """Like `detect`, but with "patches" (y, x, bool [h, w]) instead of "masks".

        See `detector.detect_patches`; hundreds of objects on a large image then need little memory.
        With `probabilities` patches are float32: each pixel's probability before MASK_THRESHOLD.
        scales: factor of enlargement of each image; by default from the size of its objects where
        OBJECT_SIZE asks for that.
        """
        return detector.detect_patches(self._fast(), images, self.config, probabilities, scales)

    @keras_defaults()
    def detect_proposals(self, images, proposals, scales=(None,)) -> list[dict]:
        """Like `detect`, on given regions instead of the proposal network's (paper section 3.8.5).

        Args:
            images: list of [H, W, C] arrays with values 0 to 255.
            proposals: for every image [R, 4] in pixels, y1, x1, y2, x2.
            scales: factors of enlargement, see `given_proposals.detect_proposals`; several make an
                image pyramid, each region being used at the scale where it is nearest to 224 x 224
                pixels.
        """
        find, network = given_proposals.detect_proposals, self._fast()
        return [
            detector.with_masks(find(network, image, regions, scales, self.config), image.shape)
            for image, regions in zip(images, proposals, strict=True)
        ]

    @keras_defaults()
    def find_scales(self, images, first: float | None = None) -> list[float | None]:
        """The scales that OBJECT_SIZE asks for; see `detector.find_scales`."""
        return detector.find_scales(self._fast(), images, self.config, first)

    @keras_defaults()
    def detect_molded(self, molded_images, image_metas, verbose: int = 0) -> list[dict]:
        """Like `detect`, for images that are already molded; results are in molded pixels."""
        shape = np.shape(molded_images)[1:]
        found = detector.detect_molded(self._fast(), molded_images, image_metas, self.config)
        return [detector.with_masks(result, shape) for result in found]

    def _fast(self) -> FastNetwork:
        if self.mode != "inference":
            raise UserError('detection needs MaskRCNN(mode="inference", ...)')
        check_process()
        self.check_weights()
        # A copy of a model may have been given another configuration.
        if self._network is None or self._network.config is not self.config:
            self._network = FastNetwork(self.config, self.bank)
        return self._network


def _restored(
    kind: type[MaskRCNN], keys: dict[str, Any], model_dir: str, weights: list[np.ndarray]
) -> MaskRCNN:
    """A model for inference as `MaskRCNN.__reduce__` describes it."""
    config = Config()
    vars(config).update(keys)
    model = kind("inference", config, model_dir)
    model.keras_model.set_weights(weights)
    return model
