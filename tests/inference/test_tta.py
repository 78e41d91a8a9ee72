"""Test-time augmentation: variants of an image, and merging what is found on them."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from mrcnn.inference import tta
from mrcnn.inference.postprocess import PostProcessing, postprocess
from mrcnn.inference.tta import NONE, Detections, Variant, detect, detect_variants, merge
from mrcnn.model import MaskRCNN
from tests.network.test_models import set_weights
from tests.support.tiny import TinyConfig

ORIENTATIONS = [Variant(mirrored=m, turns=t) for m in (False, True) for t in range(4)]
SHAPE = (37, 52, 3)


def make_image(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# --- variants -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ORIENTATIONS, ids=str)
def test_every_patch_comes_back_to_its_own_pixels(variant):
    image = make_image()
    changed = variant.apply(image)
    rng = np.random.default_rng(1)
    for _ in range(30):
        (top, bottom), (left, right) = (
            np.sort(rng.integers(0, side + 1, 2)) for side in changed.shape[:2]
        )
        y, x, patch = variant.restore((top, left, changed[top:bottom, left:right]), image.shape)
        assert patch.shape[0] * patch.shape[1] == (bottom - top) * (right - left)
        np.testing.assert_array_equal(image[y : y + patch.shape[0], x : x + patch.shape[1]], patch)


def test_there_are_eight_orientations():
    image = make_image(shape=(9, 9, 3))
    changed = [variant.apply(image) for variant in ORIENTATIONS]
    for one, other in itertools.combinations(changed, 2):
        assert not np.array_equal(one, other)
    np.testing.assert_array_equal(Variant(mirrored=True).apply(image), np.fliplr(image))
    np.testing.assert_array_equal(Variant(mirrored=True, turns=2).apply(image), np.flipud(image))
    np.testing.assert_array_equal(Variant(scale=2.0).apply(image), image)  # the network scales


def test_sets_grow_and_start_with_the_image_as_it_is():
    sizes = [len(NONE), *(len(variants) for variants in tta.SETS.values())]
    assert sizes == sorted(set(sizes))
    for one, other in itertools.pairwise(tta.SETS.values()):
        assert other[: len(one)] == one
    for variants in tta.SETS.values():
        assert variants[0] == tta.UNCHANGED and len(set(variants)) == len(variants)
        assert len({str(variant) for variant in variants}) == len(variants)
    assert set(tta.SETS["turns"]) == set(ORIENTATIONS)
    assert tta.variants_of(None) == NONE and tta.variants_of("flips") == tta.FLIPS


# --- detecting ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    class Pad64Config(TinyConfig):
        IMAGES_PER_GPU = 1
        IMAGE_RESIZE_MODE = "pad64"
        PIXEL_CONVENTION = "exact"
        DETECTION_MAX_INSTANCES = 40

    model = MaskRCNN("inference", Pad64Config(), str(tmp_path_factory.mktemp("logs")))
    set_weights(model.keras_model)
    return model


def test_variants_through_a_network_as_done_by_hand(network):
    image = make_image(3)
    variants = [Variant(mirrored=True, turns=3), Variant(scale=0.7), Variant(turns=1, scale=1.3)]
    found = detect_variants(network, image, variants)
    scale = 64 / 37  # IMAGE_MIN_DIM
    for variant, (scores, patches, _) in zip(variants, found, strict=True):
        changed = variant.apply(image)
        [result] = network.detect_patches([changed], True, [scale * variant.scale])
        assert len(scores) > 0
        np.testing.assert_array_equal(scores, result["scores"])
        for patch, original in zip(patches, result["patches"], strict=True):
            plane = np.rot90(on_plane(original, changed.shape), -variant.turns)
            np.testing.assert_array_equal(
                on_plane(patch, image.shape), np.fliplr(plane) if variant.mirrored else plane
            )


def test_one_variant_is_the_plain_detection(network):
    image = make_image(4)
    [expected] = network.detect_patches([image], probabilities=True)
    found = detect(network, image)
    np.testing.assert_array_equal(found.scores, expected["scores"])
    for patch, other in zip(found.patches, expected["patches"], strict=True):
        assert patch[:2] == other[:2] and patch[2].dtype == np.float32
        np.testing.assert_array_equal(patch[2], other[2])


class BrightBlobs:
    """Finds connected bright pixels; what it finds turns with the image."""

    def find_scales(self, images):
        return [None] * len(images)

    def detect_patches(self, images, probabilities=False, scales=None):
        assert probabilities and set(scales) == {None}
        return [self._detect(image) for image in images]

    @staticmethod
    def _detect(image):
        blobs, count = ndimage.label(image[..., 0] > 128)
        boxes = ndimage.find_objects(blobs)
        patches = [
            (
                rows.start,
                columns.start,
                (blobs[rows, columns] == i) * image[rows, columns, 0].astype(np.float32) / 255,
            )
            for i, (rows, columns) in enumerate(boxes, 1)
        ]
        return {"patches": patches, "scores": [0.5 + p.sum() / 1e4 for _, _, p in patches]}


@pytest.mark.parametrize(
    "variants",
    [tta.SETS["flips"], tta.SETS["turns"], ORIENTATIONS[5:7]],
    ids=["flips", "turns", "two"],
)
def test_merging_what_turns_with_the_image_changes_nothing(variants):
    smooth = ndimage.gaussian_filter(make_image(2, (60, 83)).astype(float), 2)
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    image = np.repeat(smooth.astype(np.uint8)[..., None], 3, axis=-1)
    alone = BrightBlobs().detect_patches([image], True, [None])[0]
    assert len(alone["scores"]) > 8
    merged = detect(BrightBlobs(), image, variants)
    plain = PostProcessing.plain()
    expected = postprocess(Detections(**alone), image.shape, plain)
    labels, scores = postprocess(merged, image.shape, plain)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(scores, expected[1])


# --- merging --------------------------------------------------------------------------------


def on_plane(patch, shape):
    """A patch as a whole plane [H, W]."""
    plane = np.zeros(shape[:2], np.float32)
    y, x, array = patch
    plane[y : y + array.shape[0], x : x + array.shape[1]] = array
    return plane


def random_variants(seed, variants=4, nuclei=9):
    """The same nuclei seen by each variant with noise, some missed, some seen twice."""
    rng = np.random.default_rng(seed)
    boxes = rng.integers((0, 0, 6, 6), (24, 38, 13, 13), (nuclei, 4))
    found, score = [], iter(rng.permutation(np.linspace(0.3, 0.99, 200)))
    for _ in range(variants):
        patches = []
        for y, x, height, width in boxes[rng.random(nuclei) < 0.8].repeat(2, axis=0):
            if rng.random() < 0.6:
                dy, dx = rng.integers(0, 3, 2)
                patches.append(
                    (
                        int(y + dy - 1) if y else int(dy),
                        int(x + dx),
                        rng.uniform(0.35, 1, (height - 2, width - 2)).astype(np.float32),
                    )
                )
        found.append(Detections(np.array([next(score) for _ in patches]), patches))
    return found


def naive_merge(found, shape, same):
    """As documented, with whole planes and full search."""
    pool = [
        (score, v, on_plane(patch, shape))
        for v, detections in enumerate(found)
        for score, patch in zip(*detections[:2], strict=True)
    ]
    pool.sort(key=lambda item: -item[0])
    merged = []
    while pool:
        group = [pool.pop(0)]
        mask = group[0][2] >= 0.5
        for v in range(len(found)):
            ious = [
                ((mask & (p >= 0.5)).sum() / (mask | (p >= 0.5)).sum(), i)
                for i, (_, w, p) in enumerate(pool)
                if w == v != group[0][1]
            ]
            iou, i = max(ious, default=(0, None), key=lambda pair: (pair[0], -(pair[1])))
            if iou > same:
                group.append(pool[i])
        pool = [item for item in pool if not any(item is member for member in group)]
        merged.append(
            (
                sum(item[0] for item in group) / len(found),
                np.mean([item[2] for item in group], axis=0),
                len(group),
            )
        )
    return merged


@pytest.mark.parametrize("same", [0.3, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_merge_as_the_naive_one(seed, same):
    found = random_variants(seed)
    expected = naive_merge(found, SHAPE, same)
    scores, patches, _ = merge(found, SHAPE, same)
    assert {size for *_, size in expected} >= {1, 3}  # the case is not a trivial one
    np.testing.assert_allclose(scores, [score for score, *_ in expected])
    for patch, (_, plane, _) in zip(patches, expected, strict=True):
        assert patch[2].dtype == np.float32
        np.testing.assert_allclose(on_plane(patch, SHAPE), plane, atol=1e-6)


def test_the_order_of_variants_and_detections_does_not_matter():
    found = random_variants(7)
    rng = np.random.default_rng(0)
    shuffled = [
        Detections(d.scores[order], [d.patches[i] for i in order])
        for d in (found[2], found[0], found[3], found[1])
        for order in [rng.permutation(len(d.scores))]
    ]
    one, other = merge(found, SHAPE), merge(shuffled, SHAPE)
    np.testing.assert_allclose(one.scores, other.scores)
    for first, second in zip(one.patches, other.patches, strict=True):
        assert first[:2] == second[:2]
        np.testing.assert_allclose(first[2], second[2], atol=1e-6)


def test_what_one_variant_of_four_sees_has_a_quarter_of_its_score():
    patch = (3, 4, np.ones((5, 5), np.float32))
    nothing = Detections(np.zeros(0), [])
    scores, [merged], _ = merge(
        [nothing, Detections(np.array([0.8]), [patch]), nothing, nothing], SHAPE
    )
    assert scores == pytest.approx([0.2]) and merged[:2] == (3, 4)
    np.testing.assert_array_equal(merged[2], patch[2])


def test_two_halves_are_not_one_nucleus():
    whole = Detections(np.array([0.9]), [(0, 0, np.ones((4, 8), np.float32))])
    halves = Detections(
        np.array([0.8, 0.7]),
        [(0, 0, np.ones((4, 4), np.float32)), (0, 4, np.ones((4, 4), np.float32))],
    )
    assert merge([whole, halves], SHAPE).scores.tolist() == pytest.approx([0.45, 0.4, 0.35])


def test_merging_nothing():
    nothing = Detections(np.zeros(0), [])
    scores, patches, _ = merge([nothing, nothing], SHAPE)
    assert scores.shape == (0,) and patches == []
    model = SimpleNamespace(
        find_scales=lambda images: [None],
        detect_patches=lambda images, **_: [{"scores": np.zeros(0), "patches": []} for _ in images],
    )
    assert detect(model, make_image(), tta.FLIPS).patches == []


def test_a_merged_detection_has_the_class_of_its_best_member():
    left, right = ((0, x, np.ones((4, 4), np.float32)) for x in (0, 10))
    one = Detections(np.array([0.6, 0.9]), [left, right], np.array([2, 1]))
    other = Detections(np.array([0.7]), [left], np.array([3]))
    found = merge([one, other], SHAPE)
    assert found.scores.tolist() == pytest.approx([0.45, 0.65])
    assert found.class_ids.tolist() == [1, 3]
    assert merge([one._replace(class_ids=None), other], SHAPE).class_ids is None
