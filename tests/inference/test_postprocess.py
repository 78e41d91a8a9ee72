"""Post-processing: from detections with probability masks to a label map."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import ndimage

from mrcnn.errors import UserError
from mrcnn.inference.postprocess import (
    DEFAULTS,
    Detections,
    PostProcessing,
    mask_pairs,
    postprocess,
    suppress,
)
from mrcnn.pixels.masks import label_map

SHAPE = (40, 48, 3)
PLAIN = PostProcessing.plain()
EVERYTHING = PostProcessing(
    min_score=0.3,
    mask_threshold=0.45,
    max_covered=0.4,
    overlaps="product",
    largest_piece=True,
    min_typical_area=0.3,
    min_area=6,
    fill_holes=True,
)


def random_detections(seed, count=25, shape=SHAPE):
    """Smooth blobs with holes and loose bits, many of them overlapping; different scores."""
    rng = np.random.default_rng(seed)
    patches = []
    for _ in range(count):
        height, width = rng.integers(1, 16, 2)
        y, x = rng.integers(0, shape[0] - height + 1), rng.integers(0, shape[1] - width + 1)
        noise = ndimage.uniform_filter(rng.random((height, width)), 3)
        centre = np.hypot(
            *np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
        )
        patch = np.clip(1.1 - 0.7 * centre + 2 * (noise - 0.5), 0, 1).astype(np.float32)
        patches.append((int(y), int(x), patch))
    return Detections(rng.permutation(np.linspace(0.2, 0.99, count)), patches)


def planes_of(detections, shape):
    """Probabilities [N, H, W], -1 outside of the patches."""
    planes = np.full((len(detections.patches), *shape[:2]), -1.0)
    for plane, (y, x, patch) in zip(planes, detections.patches, strict=True):
        plane[y : y + patch.shape[0], x : x + patch.shape[1]] = patch
    return planes


def largest_piece(mask):
    pieces, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = [(pieces == i).sum() for i in range(1, count + 1)]
    return pieces == 1 + int(np.argmax(sizes)) if count else mask


def naive(detections, shape, s):
    """As documented, with whole planes, step by step. Masks [n, H, W] and scores, descending."""
    planes, scores = planes_of(detections, shape), np.asarray(detections.scores)
    ranked = [i for i in np.argsort(-scores) if scores[i] >= s.min_score]
    masks = {i: planes[i] >= s.mask_threshold for i in ranked}
    kept = []
    for i in ranked:

        def covered(j, i=i):
            smaller = min(masks[i].sum(), masks[j].sum())
            return (masks[i] & masks[j]).sum() / smaller if smaller else 0

        if s.max_covered is None or all(covered(j) <= s.max_covered for j in kept):
            kept.append(i)
    owners = {i: np.zeros(shape[:2], bool) for i in kept}
    for y, x in itertools.product(range(shape[0]), range(shape[1])):
        claims = [i for i in kept if masks[i][y, x]]
        if claims:
            value = {
                "score": lambda i: scores[i],
                "probability": lambda i, p=(y, x): planes[i][p],
                "product": lambda i, p=(y, x): planes[i][p] * scores[i],
            }[s.overlaps]
            owners[max(claims, key=value)][y, x] = True  # of equal ones the first: better score
    if s.largest_piece:
        owners = {i: largest_piece(mask) for i, mask in owners.items()}
    owners = {i: mask for i, mask in owners.items() if mask.any()}
    typical = np.median([mask.sum() for mask in owners.values()]) if owners else 0
    smallest = max(s.min_area or 0, (s.min_typical_area or 0) * typical)
    owners = {i: mask for i, mask in owners.items() if mask.sum() >= smallest}
    if s.fill_holes:
        free = ~np.any([np.zeros(shape[:2], bool), *owners.values()], axis=0)
        owners = {i: mask | (ndimage.binary_fill_holes(mask) & free) for i, mask in owners.items()}
    return np.array(list(owners.values())), scores[list(owners)]


SWITCHED = [
    PLAIN,
    DEFAULTS,
    EVERYTHING,
    *(
        replace(PLAIN, overlaps=o, max_covered=c)
        for o in ("probability", "product")
        for c in (None, 0.3)
    ),
    *(replace(EVERYTHING, **{f.name: getattr(PLAIN, f.name)}) for f in fields(PostProcessing)),
]


@pytest.mark.parametrize("settings", SWITCHED, ids=str)
def test_as_the_naive_one(settings):
    changed = 0
    for seed in range(4):
        detections = random_detections(seed)
        labels, scores = postprocess(detections, SHAPE, settings)
        masks, expected = naive(detections, SHAPE, settings)
        assert labels.dtype == np.int32 and labels.shape == SHAPE[:2]
        np.testing.assert_array_equal(scores, expected)
        for label, mask in enumerate(masks, 1):
            np.testing.assert_array_equal(labels == label, mask)
        assert labels.max() == len(masks) > 0
        changed += not np.array_equal(labels, postprocess(detections, SHAPE, PLAIN)[0])
    assert bool(changed) == (settings != PLAIN)


@pytest.mark.parametrize("values", [{"sharpness": 1}, {"min_score": 2}, {"overlaps": "both"}])
def test_unknown_settings_name_their_source(values):
    with pytest.raises(UserError, match="^a.json: its post-processing is not valid"):
        PostProcessing.of(values, "a.json")


@pytest.mark.parametrize("seed", range(3))
def test_plain_is_the_submission_label_map(seed):
    detections = random_detections(seed)
    sure = [i for i in range(25) if detections.scores[i] >= 0.5]
    patches = [(y, x, p >= 0.5) for y, x, p in (detections.patches[i] for i in sure)]
    expected = label_map(patches, detections.scores[sure], SHAPE)
    found, scores = postprocess(detections, SHAPE, PLAIN)
    present, renumbered = np.unique(expected, return_inverse=True)
    np.testing.assert_array_equal(found, renumbered.reshape(expected.shape))
    np.testing.assert_array_equal(scores, np.sort(detections.scores[sure])[::-1][present[1:] - 1])


@pytest.mark.parametrize("settings", [PLAIN, DEFAULTS, EVERYTHING], ids=str)
def test_the_order_of_the_detections_does_not_matter(settings):
    detections = random_detections(5)
    order = np.random.default_rng(0).permutation(25)
    shuffled = Detections(detections.scores[order], [detections.patches[i] for i in order])
    for found, again in zip(
        postprocess(detections, SHAPE, settings),
        postprocess(shuffled, SHAPE, settings),
        strict=True,
    ):
        np.testing.assert_array_equal(found, again)


def test_of_equal_scores_the_first_counts_as_the_higher():
    patch = np.ones((4, 4), np.float32)
    detections = Detections(np.array([0.9, 0.9]), [(0, 0, patch), (0, 2, patch)])
    labels, _ = postprocess(detections, (8, 8), PLAIN)
    assert (labels == 1).sum() == 16 and (labels == 2).sum() == 8 and (labels[:4, :4] == 1).all()


@pytest.mark.parametrize("settings", [PLAIN, DEFAULTS, EVERYTHING], ids=str)
@pytest.mark.parametrize(
    "detections",
    [
        Detections(np.zeros(0), []),
        Detections(np.array([0.1, 0.05]), [(0, 0, np.ones((3, 3), np.float32))] * 2),  # not sure
        Detections(np.array([0.9]), [(1, 1, np.zeros((3, 3), np.float32))]),  # no pixel
        Detections(np.array([0.9]), [(1, 1, np.zeros((0, 3), np.float32))]),
    ],
    ids=["none", "unsure", "empty mask", "empty patch"],
)
def test_nothing_found(detections, settings):
    labels, scores = postprocess(detections, (12, 9), settings)
    assert labels.shape == (12, 9) and not labels.any() and scores.shape == (0,)


def test_a_sure_bool_mask_is_kept_as_it_is():
    disc = np.hypot(*np.mgrid[-6:7, -6:7]) <= 6
    labels, scores = postprocess(Detections(np.array([0.9]), [(3, 4, disc)]), (30, 30))
    np.testing.assert_array_equal(labels[3:16, 4:17], disc)
    assert labels.sum() == disc.sum() and scores == [0.9]


def test_contested_pixels_go_to_the_more_confident_mask():
    left, right = np.ones((4, 6), np.float32), np.ones((4, 6), np.float32)
    left[:, 4:], right[:, :2] = [0.8, 0.6], [0.6, 0.7]  # columns 4 and 5 of the image
    detections = Detections(np.array([0.9, 0.7]), [(0, 0, left), (0, 4, right)])
    owner = {
        o: postprocess(detections, (4, 10), replace(PLAIN, overlaps=o))[0][0, 4:6].tolist()
        for o in ("score", "probability", "product")
    }
    assert owner == {"score": [1, 1], "probability": [1, 2], "product": [1, 1]}


def test_a_hole_that_holds_another_nucleus_is_filled_around_it_only():
    ring = np.ones((9, 9), np.float32)
    ring[2:7, 2:7] = 0
    core = np.ones((3, 3), np.float32)
    detections = Detections(np.array([0.9, 0.8]), [(0, 0, ring), (3, 3, core)])
    labels, _ = postprocess(detections, (9, 9), replace(PLAIN, fill_holes=True))
    assert (labels == 2).sum() == 9 and (labels == 1).sum() == 72


def test_a_bay_at_the_edge_of_the_image_is_no_hole():
    bay = np.ones((5, 5), np.float32)
    bay[:3, 2] = 0
    labels, _ = postprocess(
        Detections(np.array([0.9]), [(0, 0, bay)]), (5, 5), replace(PLAIN, fill_holes=True)
    )
    np.testing.assert_array_equal(labels, bay)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_masks(seed):
    detections = random_detections(seed)
    masks = planes_of(detections, SHAPE) >= 0.5
    pairs = mask_pairs([(y, x, p >= 0.5) for y, x, p in detections.patches], SHAPE)
    expected = [
        (i, j, (masks[i] & masks[j]).sum())
        for i in range(25)
        for j in range(25)
        if i != j and (masks[i] & masks[j]).any()
    ]
    assert len(expected) > 10
    assert list(zip(pairs.first, pairs.second, pairs.shared, strict=True)) == expected
    for i, j, shared, iou, covered in zip(*pairs, strict=True):
        assert iou == pytest.approx(shared / (masks[i] | masks[j]).sum())
        assert covered == pytest.approx(shared / min(masks[i].sum(), masks[j].sum()))
        assert iou <= covered


def test_a_suppressed_mask_suppresses_nobody():
    row = np.ones((1, 4), bool)  # each covers half of the next one
    masks = [(0, 0, row), (0, 2, row), (0, 4, row), (0, 6, row)]
    assert suppress(masks, (1, 10), 0.4).tolist() == [0, 2]
    assert suppress(masks, (1, 10), 0.5).tolist() == [0, 1, 2, 3]


# --- settings given as text -----------------------------------------------------------------


def test_settings_as_text_make_the_same_settings():
    for settings in (PLAIN, DEFAULTS, EVERYTHING):
        assert DEFAULTS.changed(str(settings).split()) == settings
    assert DEFAULTS.changed(["min_area=7", "min_area=off"]).min_area is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("min_score", "expected NAME=VALUE"),
        ("max_size=3", "one of min_score, mask_threshold"),
        ("min_score=high", "a number is needed"),
        ("min_score=1.5", "between 0 and 1"),
        ("min_score=nan", "between 0 and 1"),
        ("min_score=off", "cannot be switched off"),
        ("overlaps=off", "cannot be switched off"),
        ("overlaps=vote", "one of score, probability"),
        ("fill_holes=1", "expected on or off"),
        ("min_area=2.5", "a whole number"),
        ("min_area=-1", "must not be negative"),
        ("max_covered=-0.1", "between 0 and 1"),
    ],
)
def test_wrong_settings(text, message):
    with pytest.raises(UserError, match=message):
        DEFAULTS.changed([text])


@pytest.mark.parametrize(
    "name, value",
    [
        ("min_score", {"=1+1": ""}),
        ("min_score", "0.5"),
        ("min_score", None),
        ("min_score", True),
        ("min_score", float("nan")),
        ("min_area", [1]),
        ("overlaps", ["score"]),
        ("fill_holes", "no"),
        ("largest_piece", None),
    ],
)
def test_values_of_other_types_name_the_file_and_the_setting(name, value):
    with pytest.raises(UserError, match=rf"a\.json: its post-processing is not valid \({name}="):
        PostProcessing.of({name: value}, "a.json")
