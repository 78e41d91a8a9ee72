import numpy as np
import pytest
from skimage.io import imread

from mrcnn.errors import UserError
from samples.nucleus import nucleus
from samples.nucleus.pasting import crowd, fits, overlap, paste, whole_nuclei
from samples.nucleus.synthesize import crowd_images, draw_image, synthesize


def test_crowding_adds_nuclei_and_keeps_the_others_visible():
    image, labels = draw_image("fluorescence-small", 256, (1, "paste", 0))
    more, crowded = crowd(image, labels, np.random.default_rng(0))
    count = labels.max()
    assert crowded.max() > count and more.shape == image.shape and more.dtype == np.uint8
    before = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    for number in range(1, count + 1):  # none became another's, some pixels may be hidden
        assert set(np.unique(labels[crowded == number])) <= {number}
    after = np.bincount(crowded.ravel())[1 : count + 1]
    assert (after <= before).all() and after.sum() > 0.7 * before.sum()
    unchanged = (crowded == labels) & (labels == 0)
    assert np.mean(np.abs(more[unchanged].astype(float) - image[unchanged])) < 3


def test_a_copy_looks_like_its_nucleus():
    image = np.full((64, 64, 1), 10, np.uint8)
    labels = np.zeros((64, 64), np.int32)
    labels[10:20, 10:24] = 1
    image[labels == 1] = 200
    more, crowded = crowd(image, labels, np.random.default_rng(3))
    copies = [n for n in np.unique(crowded) if n > 1]
    assert copies
    for number in copies:
        inner = more[crowded == number].astype(float)
        assert inner.mean() > 100  # dimmed to 70 % above the background at most, soft at the edge


def test_without_a_whole_nucleus_nothing_changes():
    image = np.full((20, 20, 3), 7, np.uint8)
    labels = np.zeros((20, 20), np.int32)
    labels[:5, 3:9] = 1  # cut by the frame
    same, same_labels = crowd(image, labels, np.random.default_rng(0))
    assert same is image and same_labels is labels
    assert crowd(image, 0 * labels, np.random.default_rng(0))[1].max() == 0


def test_slivers_and_cut_nuclei_are_not_copied():
    labels = np.zeros((40, 40), np.int32)
    labels[5:15, 5:15], labels[20:30, 20:30] = 1, 2
    labels[35:36, 10:12] = 3  # a sliver
    labels[0:8, 30:38] = 4  # cut by the frame
    from scipy import ndimage

    found = whole_nuclei(ndimage.find_objects(labels), np.bincount(labels.ravel()), labels.shape)
    assert found == [1, 2]


def test_what_hides_a_nucleus_does_not_fit():
    labels = np.zeros((30, 30), np.int32)
    labels[10:20, 10:20] = 1
    areas, mask = np.bincount(labels.ravel()), np.ones((10, 10), bool)
    assert not fits(labels, mask, (15, 15), areas)
    assert fits(labels, mask, (15, 25), areas)
    assert not fits(labels, mask, (29, 29), areas)  # a quarter of it in the image


@pytest.mark.parametrize("centre", [(0, 0), (15, 15), (29, 3)])
def test_pasting_draws_exactly_the_mask(centre):
    labels = np.zeros((30, 30), np.int32)
    canvas = np.zeros((30, 30, 1), np.float32)
    mask = np.tri(7, 9, dtype=bool)
    paste(canvas, labels, np.full((7, 9, 1), 50, np.float32), mask, centre, 4)
    inside, part = overlap(mask.shape, centre, labels.shape)
    assert np.array_equal(labels[inside] == 4, mask[part])
    assert np.count_nonzero(labels) == np.count_nonzero(mask[part])
    assert canvas[labels == 4].min() > 20


def test_a_crowded_data_set_is_one_in_kaggles_layout(tmp_path):
    synthesize(tmp_path, 4, 128, 1, "real")
    dataset = nucleus.load_dataset(str(tmp_path), "real", labelled=True)
    names = crowd_images(dataset, tmp_path, 3, 96, 2, "crowds")
    crowds = nucleus.load_dataset(str(tmp_path), "crowds", labelled=True)
    assert len(names) == len(crowds.image_ids) == 3
    for number in crowds.image_ids:
        layers, class_ids = crowds.load_layers(number)
        assert crowds.load_image(number).shape == (96, 96, 3) and len(class_ids) > 0
        assert layers.max() == len(class_ids)
    again = crowd_images(dataset, tmp_path / "again", 3, 96, 2, "crowds")
    assert names == again
    first = [
        imread(folder / "crowds" / names[0] / "images" / f"{names[0]}.png")
        for folder in (tmp_path, tmp_path / "again")
    ]
    assert np.array_equal(*first)
    with pytest.raises(UserError, match="not an empty folder"):
        crowd_images(dataset, tmp_path, 3, 96, 2, "crowds")


def test_flags_without_effect_are_refused(tmp_path, capsys):
    base = ["synthesize", "--output", str(tmp_path / "out")]
    assert nucleus.main([*base, "--leave-out", "tissue"]) == 2
    assert nucleus.main([*base, "--crowd", "x/fit", "--kinds", "tissue"]) == 2
    assert "--crowd" in capsys.readouterr().err
