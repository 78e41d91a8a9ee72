"""Images and labels of the user's own, written as real files, and what they must be read as."""

import json

import numpy as np
import tifffile
from PIL import Image

from mrcnn.data.labelled import LabelledImages
from mrcnn.data.pairs import find_pairs
from mrcnn.pixels.masks import layers_to_masks
from mrcnn.results import result_files

SIZE = (40, 56)


def label_image(seed=0, size=SIZE):
    """About ten instances; one in two pieces that lie far apart, one with a concave outline.

    Without holes, which ROIs of ImageJ do not have.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.int32)
    for number in range(1, 9):
        cy, cx = rng.integers(0, size)
        radius_y, radius_x = rng.uniform(2, 6, 2)
        inside = ((y - cy) / radius_y) ** 2 + ((x - cx) / radius_x) ** 2 < 1
        if not (labels[inside] != 0).any():
            labels[inside] = number
    labels[:3, :3] = labels[-3:, -4:] = 20
    labels[10:20, 30:38] = 21
    labels[12:14, 34:38] = 0
    return labels


def instances(labels):
    """The instances of a label map as a set of masks."""
    return {(labels == number).tobytes() for number in np.unique(labels[labels > 0])}


def masks_of(layers, count):
    return {mask.tobytes() for mask in np.moveaxis(layers_to_masks(layers, count), -1, 0)}


def write_image(path, size=SIZE, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, grey)
    else:
        Image.fromarray(grey).save(path)


def write_labels(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        result_files.write_label_image(path, labels)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(path)


def load(pairs):
    dataset = LabelledImages()
    dataset.load_pairs(pairs, "nucleus")
    dataset.prepare()
    return dataset


def labels_of(dataset, number):
    """The label layers of an image, and how many instances it has."""
    layers, class_ids = dataset.load_layers(number)
    return layers, len(class_ids)


def read(images, labels):
    """name -> instances, of all pairs."""
    dataset = load(find_pairs(images, labels))
    found = {}
    for i in dataset.image_ids:
        layers, class_ids = dataset.load_layers(i)
        assert layers.dtype == class_ids.dtype == np.int32 and (class_ids == 1).all()
        assert layers.shape[:2] == dataset.load_image(i).shape[:2]
        found[dataset.image_reference(i)] = masks_of(layers, len(class_ids))
        assert len(found[dataset.image_reference(i)]) == len(class_ids)
    return found


TRUTH = {"a": label_image(0), "b": label_image(1), "plate/a": label_image(2)}


def expected(*names):
    return {name: instances(TRUTH[name]) for name in names or TRUTH}


def coco_file(path, truth, change=None):
    """Writes label maps as COCO's annotations; `change` gets the content beforehand."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    for number, (name, labels) in enumerate(truth.items(), 1):
        content["images"].append(
            {"id": number, "file_name": name, "height": labels.shape[0], "width": labels.shape[1]}
        )
        content["annotations"] += result_files.coco_annotations(
            labels, None, number, len(content["annotations"]) + 1
        )
    if change:
        change(content)
    path.write_text(json.dumps(content))
    return path
