"""`MaskRCNN`: build the network, load weights, train, detect. The module users import.

It also gives every public name of matterport's `mrcnn.model` from the module where it lives.
Reading order of the parts: `molding`, `resnet`, `fpn`, `anchors`, `rpn`, `roi_align`, `heads`,
`detection` for detection; `data`, `targets`, `losses`, `training` for training; `network` puts
them together.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from mrcnn.environment import check_keras, check_process, claim_process

check_keras()  # before Keras is imported, whose own errors name no remedy

import keras
import numpy as np

from mrcnn.atomic import LOCK, locked
from mrcnn.config import Config
from mrcnn.console import duration_text
from mrcnn.data.batches import BatchLoader
from mrcnn.errors import UserError
from mrcnn.inference.detector import (
    check_sides,
    detect_molded,
    detect_patches,
    find_scales,
    with_masks,
)
from mrcnn.inference.fast_network import FastNetwork
from mrcnn.inference.given_proposals import detect_proposals
from mrcnn.matterport import inspection
from mrcnn.matterport.compat import (
    DetectionTargetLayer,
    batch_pack_graph,
    detection_targets_graph,
    log,
    log2_graph,
    refine_detections_graph,
    trim_zeros_graph,
)
from mrcnn.matterport.generator import data_generator, load_image_gt
from mrcnn.matterport.numpy_targets import (
    build_detection_targets,
    build_rpn_targets,
    generate_random_rois,
)
from mrcnn.network.anchors import compute_backbone_shapes, image_anchors, normalized_anchors
from mrcnn.network.boxes import (
    apply_box_deltas_graph,
    clip_boxes_graph,
    denorm_boxes_graph,
    norm_boxes_graph,
    overlaps_graph,
)
from mrcnn.network.defaults import keras_defaults
from mrcnn.network.detection import DetectionLayer
from mrcnn.network.heads import build_fpn_mask_graph, fpn_classifier_graph
from mrcnn.network.layers import BatchNorm, LayerBank
from mrcnn.network.losses import (
    mrcnn_bbox_loss_graph,
    mrcnn_class_loss_graph,
    mrcnn_mask_loss_graph,
    rpn_bbox_loss_graph,
    rpn_class_loss_graph,
    smooth_l1_loss,
)
from mrcnn.network.models import inference_model, training_inputs, training_outputs
from mrcnn.network.precision import dtype_policy
from mrcnn.network.resnet import conv_block, identity_block, resnet_graph
from mrcnn.network.roi_align import PyramidROIAlign
from mrcnn.network.rpn import ProposalLayer, build_rpn_model, rpn_graph
from mrcnn.pixels import molding, unmolding
from mrcnn.pixels.image_meta import compose_image_meta, parse_image_meta, parse_image_meta_graph
from mrcnn.pixels.molding import mold_image, unmold_image
from mrcnn.training import checkpoints, devices, fit
from mrcnn.training.run import Asked, StageRun
from mrcnn.weights import weight_files
from mrcnn.weights.download import resolve_weights
from mrcnn.weights.matching import shorten

# matterport's public names, and what is new beside them.
__all__ = [
    "BatchLoader", "BatchNorm", "DetectionLayer", "DetectionTargetLayer", "MaskRCNN",
    "ProposalLayer", "PyramidROIAlign", "apply_box_deltas_graph", "batch_pack_graph",
    "build_detection_targets", "build_fpn_mask_graph", "build_rpn_model", "build_rpn_targets",
    "clip_boxes_graph", "compose_image_meta", "compute_backbone_shapes", "conv_block",
    "data_generator", "denorm_boxes_graph", "detection_targets_graph", "fpn_classifier_graph",
    "generate_random_rois", "identity_block", "load_image_gt", "log", "log2_graph", "mold_image",
    "mrcnn_bbox_loss_graph", "mrcnn_class_loss_graph", "mrcnn_mask_loss_graph",
    "norm_boxes_graph", "overlaps_graph", "parse_image_meta", "parse_image_meta_graph",
    "refine_detections_graph", "resnet_graph", "rpn_bbox_loss_graph", "rpn_class_loss_graph",
    "rpn_graph", "smooth_l1_loss", "trim_zeros_graph", "unmold_image",
]  # fmt: skip


class MaskRCNN:
    """Mask R-CNN (matterport's class).

    Attributes:
        keras_model: the functional model for `config.IMAGE_SHAPE`, which holds the weights.
            Detection runs a faster form of it on images of any shape, see `fast_network`.
        epoch: epochs trained so far.
        seconds: time trained so far, validation and checkpoints included.
        log_dir: folder that training writes into.
        checkpoint_path: its checkpoints, {epoch:04d} for the epoch.
    """

    def __init__(self, mode: str, config, model_dir: str):
        """
        Args:
            mode: "training" or "inference".
            config: a `Config`; it is validated again.
            model_dir: logs and checkpoints go into a folder below it, one a run.

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
        self.bank = LayerBank(dtype_policy(config.PRECISION))
        self.keras_model = self.build(mode, config)

    # ---- Building and copying --------------------------------------------------------------

    @keras_defaults()
    def build(self, mode: str, config, image_shape=None) -> keras.Model:
        """The Keras model for one image shape, `config.IMAGE_SHAPE` by default."""
        shape = tuple(int(n) for n in (config.IMAGE_SHAPE if image_shape is None else image_shape))
        if image_shape is None and config.IMAGE_RESIZE_MODE in ("none", "pad64"):
            # Images bring their own shape; this is the one to begin with.
            shape = (-(-shape[0] // 64) * 64, -(-shape[1] // 64) * 64, shape[2])
        check_sides(shape)
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

        Raises UserError for a model that trains, whose optimizer would be left out, and for one
        that lacks weights.
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

        A checkpoint that training wrote sets `epoch` and `log_dir`, and the next `train` goes on
        where it stopped, optimizer state included. A model for inference whose layers a file
        fills in part detects when further files have filled the others.

        Args:
            filepath: .h5 file.
            by_name: False demands that file and model have the same layers.
            exclude: names of layers to leave as they are; implies `by_name`.

        Returns:
            A report of what was loaded, left over and left as it was.

        Raises:
            UserError: the file cannot be read or does not fit.
        """
        filepath = str(filepath)
        by_name = by_name or bool(exclude) or weight_files.is_imagenet_file(filepath)
        report = weight_files.load_weights(
            self.keras_model, filepath, by_name=by_name, exclude=exclude
        )
        if self.mode == "inference":
            self._note_unfilled(report.initial)
        self.set_log_dir(filepath)
        return report

    def _note_unfilled(self, layers: Sequence[str]) -> None:
        """Keep in mind the layers that no file has filled yet, and the values they have."""
        known = self.bank.unfilled
        if known is not None:
            self.bank.unfilled = {name: known[name] for name in known if name in layers}
            return
        tensors = weight_files.layer_tensors(self.keras_model)
        self.bank.unfilled = {name: _arrays(tensors[name]) for name in layers}

    def check_weights(self) -> None:
        """Raise UserError where weight files were loaded and have left layers as they were.

        A model that no file was loaded into is its owner's affair, and so are layers that got
        their weights in another way.
        """
        if not self.bank.unfilled:
            return
        tensors = weight_files.layer_tensors(self.keras_model)
        names = [
            name
            for name, values in self.bank.unfilled.items()
            if all(map(np.array_equal, values, _arrays(tensors[name])))
        ]
        if names:
            raise UserError(
                f"the weights that were loaded leave {shorten(names)} at random values: load a "
                "file that holds all layers before detecting"
            )

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

        As in matterport another experiment's checkpoint gives its date and epoch, too; only a
        checkpoint of this one (by NAME) is resumed in its own folder, with its state.
        """
        name, run = self._name(), checkpoints.run_of(model_path)
        self._resume, self.seconds, self._has_folder = None, 0.0, bool(run)
        if run:
            started, self.epoch = run
            folder = checkpoints.run_folder(self.model_dir, name, started)
            if Path(model_path).parent.name == folder.name:
                folder = Path(model_path).parent
            if Path(model_path).parent == folder and self.mode == "training":
                self._resume = checkpoints.progress_of(folder, self.epoch)
                self.seconds = (self._resume or {}).get("seconds", 0.0)
        else:
            self.epoch = 0
            folder = checkpoints.new_run_folder(self.model_dir, name)
        self.log_dir = str(folder)
        self.checkpoint_path = checkpoints.checkpoint_path(folder, name)

    def claim_log_dir(self) -> None:
        """Make the folder of a new run, that no other run has; `log_dir`, if that is so. A resumed
        run, and one that has a folder, keeps it."""
        if self._has_folder or not devices.is_chief():
            return
        self._has_folder = True
        if Path(self.log_dir).is_dir() and not (Path(self.log_dir) / LOCK).exists():
            return  # its owner has made it
        folder = checkpoints.claim_run_folder(self.model_dir, self._name(), self.log_dir)
        self.log_dir = str(folder)
        self.checkpoint_path = checkpoints.checkpoint_path(folder, self._name())

    @property
    def output_dir(self) -> str:
        """Where this process writes: `log_dir`, or, of several processes that train together, all
        but the first a folder that goes when they end."""
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
        """Let only the layers train whose names match (matterport's method)."""
        names = fit.set_trainable(keras_model or self.keras_model, layer_regex)
        if verbose:
            log(f"Training {len(names)} layers")

    def compile(
        self, learning_rate: float, momentum: float | None = None, total_steps: int | None = None
    ):
        """Get the model ready for training; may be called again and again.

        total_steps: that the learning rate's schedule is for; None: no schedule.
        """
        config = self.config
        if momentum is not None and momentum != config.LEARNING_MOMENTUM:
            config = copy.copy(config)
            config.LEARNING_MOMENTUM = momentum
        rate = learning_rate
        scheduled = config.LEARNING_SCHEDULE in ("cosine", "step") or config.LEARNING_WARMUP_STEPS
        if total_steps is not None and scheduled:
            rate = fit.make_schedule(config, learning_rate, total_steps)
        with devices.scope(config.GPU_COUNT):
            fit.compile_model(self.keras_model, fit.make_optimizer(config, rate))

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
        do, and another stage begins with it.

        Args:
            train_dataset: a prepared `Dataset`.
            val_dataset: another one, or None.
            learning_rate: of this stage, before warm-up and schedule.
            epochs: epochs to have done in the end, those of earlier stages included; a stage
                that is done already is skipped.
            layers: "heads", "3+", "4+", "5+", "all", or a regular expression of layer names.
            augmentation: see `augment`; imgaug augmenters work too.
            custom_callbacks: Keras callbacks.
            no_augmentation_sources: names of sources that are not augmented.
            freeze_bn: this stage leaves the statistics of the batch norms as they are and uses
                them, as TRAIN_BN = False does; their scales and offsets train with their layers.
            time_budget: seconds of training to have done in the end, those of earlier stages and
                of the resumed run included; LEARNING_SCHEDULE ends with them. The
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
        if self.is_done(epochs, time_budget):
            return
        losses = None if losses is None else sorted(losses)
        asked = Asked(
            layers, float(learning_rate), int(epochs), bool(freeze_bn), time_budget, losses
        )
        run = StageRun(self, asked)
        loader = BatchLoader(
            train_dataset,
            self.config,
            augmentation=augmentation,
            start_epoch=self.epoch,
            no_augmentation_sources=no_augmentation_sources,
            proposer=self.proposer,
            part=devices.processes(),
        )
        validation = None
        if val_dataset is not None and self.config.VALIDATION_STEPS:
            validation = BatchLoader(
                val_dataset,
                self.config,
                training=False,
                proposer=self.proposer,
                part=devices.processes(),
            )
        self._fit_shape(loader, validation)
        self.claim_log_dir()
        count = self.config.GPU_COUNT
        with locked(self.output_dir, again=True), devices.scope(count, run.remains):
            run.prepare()
            run.fit(loader, validation, custom_callbacks or ())

    def is_done(self, epochs: int, time_budget: float | None) -> bool:
        """Whether a stage has its epochs or its time already; says so."""
        if self.epoch >= epochs:
            log(f"Stage up to epoch {epochs} is done already")
            return True
        if time_budget is not None and self.seconds >= time_budget:
            log(f"Stage up to {duration_text(time_budget)} of training is done already")
            return True
        return False

    def _fit_shape(self, loader, validation) -> None:
        """Rebuild the training model where "none" and "pad64" give images another shape.

        All images of a run must have that shape: the loaders say so in one line if they do not.
        """
        if self.config.IMAGE_RESIZE_MODE not in ("none", "pad64"):
            return
        shape = loader[0][0]["input_image"].shape[1:]
        for batches in (loader, validation):
            if batches is not None:
                batches.image_shape = shape
        if shape != tuple(self.keras_model.input["input_image"].shape[1:]):
            self.keras_model = self.build("training", self.config, shape)

    # ---- Detection ---------------------------------------------------------------------------

    def mold_inputs(self, images):
        """Pictures to network input; see `molding.mold_inputs`."""
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
            verbose: 1 prints what goes in.

        Returns:
            For every image, in order, a dictionary with rois int32 [N, 4] in pixels, class_ids
            int32 [N], scores float32 [N] and masks bool [H, W, N].
        """
        if verbose:
            log(f"Processing {len(images)} images")
            for image in images:
                log("image", image)
        return [
            with_masks(found, image.shape)
            for found, image in zip(self.detect_patches(images), images, strict=True)
        ]

    @keras_defaults()
    def detect_patches(self, images, probabilities: bool = False, scales=None) -> list[dict]:
        """As `detect`, but "patches" (y, x, bool [h, w]) in place of "masks".

        See `detector.detect_patches`; hundreds of objects on a large image need little memory.
        With `probabilities` patches are float32: each pixel's probability before MASK_THRESHOLD.
        scales: factor of enlargement of each image; by default by the size of its objects where
        OBJECT_SIZE asks for that.
        """
        return detect_patches(self._fast(), images, self.config, probabilities, scales)

    @keras_defaults()
    def detect_proposals(self, images, proposals, scales=(None,)) -> list[dict]:
        """As `detect`, on regions given in place of the proposal network's (paper 3.8.5).

        Args:
            images: list of [H, W, C] arrays with values 0 to 255.
            proposals: of every image [R, 4] in pixels, y1, x1, y2, x2.
            scales: factors of enlargement, see `given_proposals.detect_proposals`; several make an
                image pyramid, each region being seen where it is nearest to 224 x 224 pixels.
        """
        results = [
            detect_proposals(self._fast(), image, regions, scales, self.config)
            for image, regions in zip(images, proposals, strict=True)
        ]
        return [
            with_masks(found, image.shape) for found, image in zip(results, images, strict=True)
        ]

    @keras_defaults()
    def find_scales(self, images, first: float | None = None) -> list[float | None]:
        """The scales that OBJECT_SIZE asks for; see `detector.find_scales`."""
        return find_scales(self._fast(), images, self.config, first)

    @keras_defaults()
    def detect_molded(self, molded_images, image_metas, verbose: int = 0) -> list[dict]:
        """As `detect`, for images that are molded already; results are in molded pixels."""
        shape = np.shape(molded_images)[1:]
        found = detect_molded(self._fast(), molded_images, image_metas, self.config)
        return [with_masks(result, shape) for result in found]

    def _fast(self) -> FastNetwork:
        if self.mode != "inference":
            raise UserError('detection needs MaskRCNN(mode="inference", ...)')
        check_process()
        self.check_weights()
        # A copy of a model may have got another configuration.
        if self._network is None or self._network.config is not self.config:
            self._network = FastNetwork(self.config, self.bank)
        return self._network

    # ---- Looking inside (matterport's tools) ---------------------------------------------------

    def ancestor(self, tensor, name: str, checked=None):
        """See `inspection.ancestor`."""
        return inspection.ancestor(tensor, name, checked)

    def find_trainable_layer(self, layer):
        """See `inspection.find_trainable_layer`."""
        return inspection.find_trainable_layer(layer)

    def get_trainable_layers(self) -> list:
        """See `inspection.get_trainable_layers`."""
        return inspection.get_trainable_layers(self.keras_model)

    @keras_defaults()
    def run_graph(self, images, outputs, image_metas=None) -> dict:
        """Compute any tensors of the inference model.

        Args:
            images: list of images, or molded images when `image_metas` is given.
            outputs: list of (name, tensor), the tensors from `keras_model`.
            image_metas: [B, M].

        Returns:
            A dictionary of arrays by name, in the order asked for.
        """
        molded = images
        if image_metas is None:
            molded, image_metas, _ = self.mold_inputs(images)
        found = inspection.run_graph(self.keras_model, molded, image_metas, outputs)
        for name, value in found.items():
            log(name, value)
        return found


def _arrays(tensors: Sequence[tuple[str, keras.Variable]]) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for _, variable in tensors]


def _restored(
    kind: type[MaskRCNN], keys: dict[str, Any], model_dir: str, weights: list[np.ndarray]
) -> MaskRCNN:
    """A model for inference as `MaskRCNN.__reduce__` describes it."""
    config = Config()
    vars(config).update(keys)
    model = kind("inference", config, model_dir)
    model.keras_model.set_weights(weights)
    return model
