"""torchvision as a contestant: a worker process. It needs only torch, torchvision and NumPy.

    PEER/bin/python benchmarks/peer.py PRECISION        answers requests, see workers.py

The model is torchvision's MaskRCNN with its own ResNet-50 FPN, set as networks.py says. Its
proposal head is the same class with another width, since torchvision ties that to the pyramid's.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT_DIR = str(Path(__file__).resolve().parents[1])
if ROOT_DIR not in sys.path:
    sys.path.insert(0, ROOT_DIR)

from benchmarks import networks, scenes, workers  # noqa: E402


def make_model(side: int, learns_statistics: bool = False, train_rois: int = networks.TRAIN_ROIS):
    """The network for images that are enlarged to `side` pixels (the short and the long side)."""
    import torch
    import torchvision
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import FrozenBatchNorm2d

    width = networks.TORCHVISION
    norm = torch.nn.BatchNorm2d if learns_statistics else FrozenBatchNorm2d
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=5, norm_layer=norm
    )
    head = RPNHead(width.rpn, networks.RATIOS)
    head.conv = torchvision.ops.misc.Conv2dNormActivation(
        width.pyramid, width.rpn, kernel_size=3, norm_layer=None
    )
    torch.nn.init.normal_(head.conv[0].weight, std=0.01)
    return MaskRCNN(
        backbone,
        num_classes=width.classes,
        min_size=side,
        max_size=side,
        image_mean=[networks.MEAN_LEVEL / 255] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator(
            tuple((s,) for s in networks.ANCHOR_SIDES), (networks.ANCHOR_RATIOS,) * 5
        ),
        rpn_head=head,
        rpn_pre_nms_top_n_train=networks.CANDIDATES_PER_LEVEL,
        rpn_pre_nms_top_n_test=networks.CANDIDATES_PER_LEVEL,
        rpn_post_nms_top_n_train=networks.PROPOSALS,
        rpn_post_nms_top_n_test=networks.PROPOSALS,
        rpn_nms_thresh=networks.RPN_NMS,
        rpn_batch_size_per_image=networks.TRAIN_ANCHORS,
        box_score_thresh=networks.MIN_CONFIDENCE,
        box_nms_thresh=networks.DETECTION_NMS,
        box_detections_per_img=networks.MAX_DETECTIONS,
        box_batch_size_per_image=train_rois,
        box_positive_fraction=networks.POSITIVE_SHARE,
        _skip_resize=True,  # in training only: a resize to the same size would cost time
    )


def save(model, path: str) -> None:
    """Write the weights as arrays (.npz)."""
    import numpy as np

    arrays = {name: value.float().numpy() for name, value in model.state_dict().items()}
    np.savez(path, **arrays)


def load(model, path: str) -> None:
    """Read what `save` wrote; the statistics of a batch norm become frozen ones."""
    import numpy as np
    import torch

    with np.load(path) as file:
        values = {name: torch.from_numpy(file[name]) for name in model.state_dict()}
    model.load_state_dict(values)


def to_targets(labels) -> dict:
    """What torchvision trains on, from a scene's labels."""
    import torch

    masks, boxes = scenes.masks_and_boxes(labels)
    return {
        "boxes": torch.from_numpy(boxes).float(),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "masks": torch.from_numpy(masks).byte(),
    }


def to_tensor(image):
    """uint8 [H, W, 3] to float32 [3, H, W] from 0 to 1."""
    import torch

    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255)


class Contestant:
    """The state of a worker process; its public methods are what it can be asked to do."""

    def __init__(self, precision: str):
        self._bfloat16 = precision == "bfloat16"
        self._model = self._optimizer = self._batch = None

    def _autocast(self):
        import torch

        return torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16)

    def versions(self) -> dict:
        import torch
        import torchvision

        return {
            "PyTorch": torch.__version__.split("+")[0],
            "torchvision": torchvision.__version__.split("+")[0],
        }

    def load_detector(self, weights: str, side: int) -> dict:
        self._model = make_model(side).eval()
        load(self._model, weights)
        return {}

    def detect(self, scene: list) -> dict:
        """One timed detection: image in, full-size masks out."""
        image = scenes.image_of(scene)
        seconds, found = workers.timed(self._detect, image)
        return {"seconds": seconds, "detections": len(found["masks"])}

    def _detect(self, image) -> dict:
        import torch

        with torch.inference_mode(), self._autocast():
            found = self._model([to_tensor(image)])[0]
            masks = found["masks"][:, 0] > 0.5
        boxes, scores = (found[key].float().numpy() for key in ("boxes", "scores"))
        labels = found["labels"].numpy()
        return {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks.numpy()}

    def load_trainer(self, weights: str, scene: list, batch: int) -> dict:
        import torch

        scene = scenes.from_json(scene)
        self._model = make_model(scene.side).train()
        load(self._model, weights)
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), networks.STEP_SIZE, networks.MOMENTUM,
            weight_decay=networks.WEIGHT_DECAY,
        )  # fmt: skip
        image, labels = scenes.draw(scene)
        self._batch = [to_tensor(image)] * batch, [to_targets(labels)] * batch
        return {}

    def step(self) -> dict:
        """One timed training step."""
        seconds, loss = workers.timed(self._step, *self._batch)
        return {"seconds": seconds, "loss": loss}

    def _step(self, images, targets) -> float:
        with self._autocast():
            loss = sum(self._model(images, targets).values())
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def tune(self, what: str, scene: list | None = None) -> dict:
        """Take the faster of torch's two memory layouts for "detect" or "step"."""
        import torch

        run = (lambda: self.detect(scene)) if what == "detect" else self.step
        times = {"contiguous_format": [], "channels_last": []}
        for _ in range(3):  # alternately, so that a slow minute of the machine does not decide
            for name, seconds in times.items():
                self._model.to(memory_format=getattr(torch, name))
                run()
                seconds.append(run()["seconds"])
        best = min(times, key=lambda name: min(times[name]))
        self._model.to(memory_format=getattr(torch, best))
        return {"layout": best, "seconds": times}

    def memory(self) -> dict:
        return {"peak": workers.peak_memory()}

    def matrix_rate(self, precision: str, side: int) -> dict:
        """FLOP/s of a product of two square matrices."""
        import torch

        matrix = torch.randn(side, side).to(getattr(torch, precision))
        seconds, _ = workers.timed(torch.mm, matrix, matrix)
        return {"rate": 2 * side**3 / seconds}

    def convolution_rate(self, precision: str, side: int, channels: int) -> dict:
        """FLOP/s of a 3x3 convolution."""
        import torch

        kind, layout = getattr(torch, precision), torch.channels_last
        image = torch.randn(1, channels, side, side).to(kind, memory_format=layout)
        kernel = torch.randn(channels, channels, 3, 3).to(kind, memory_format=layout)
        convolve = torch.nn.functional.conv2d
        with torch.inference_mode():
            seconds, _ = workers.timed(lambda: convolve(image, kernel, padding=1))
        return {"rate": 2 * side**2 * 9 * channels**2 / seconds}

    def start_lessons(self) -> dict:
        """Begin to train new weights for the comparison."""
        import torch

        torch.manual_seed(0)
        model = make_model(scenes.LESSON_SIDE, True, networks.LESSON_ROIS)
        self._model = model.train()
        self._model.to(memory_format=torch.channels_last)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), 3e-4)
        self._lesson = 0
        return {}

    def learn(self, steps: int) -> dict:
        """Some steps of training."""
        loss, count = 0.0, networks.LESSON_BATCH
        for _ in range(steps):
            first = count * self._lesson
            drawn = [scenes.draw(scenes.training_scene(first + i)) for i in range(count)]
            images = [to_tensor(image) for image, _ in drawn]
            loss = self._step(images, [to_targets(labels) for _, labels in drawn])
            self._lesson += 1
        return {"loss": loss}

    def save_lessons(self, path: str) -> dict:
        save(self._model, path)
        return {}


if __name__ == "__main__":
    workers.serve(Contestant(sys.argv[1]))
