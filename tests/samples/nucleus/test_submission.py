"""Run-length codes, overlap removal and the submission file."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from mrcnn.data.dataset import Dataset
from mrcnn.errors import MRCNNWarning, UserError
from mrcnn.pixels.masks import label_map
from samples.nucleus.submission import (
    Submission,
    SubmissionWriter,
    label_runs,
    mask_to_rle,
    ranked_scores,
    remove_overlaps,
    rle_decode,
    rle_encode,
    unknown_images,
)


def naive_rle(mask):
    """Kaggle's definition, pixel by pixel: one-based, down the columns."""
    runs, previous = [], False
    for n, inside in enumerate(mask.T.ravel().tolist(), 1):
        if inside and not previous:
            runs += [n, 0]
        if inside:
            runs[-1] += 1
        previous = inside
    return " ".join(map(str, runs))


def test_rle_by_hand():
    mask = np.array([[0, 1, 1], [1, 1, 0]], bool)
    assert rle_encode(mask) == "2 4"
    assert rle_encode(np.array([[1, 0], [0, 1]])) == "1 1 4 1"
    assert rle_encode(np.zeros((3, 4), bool)) == ""
    assert rle_encode(np.full((3, 4), 255, np.uint8)) == "1 12"


@pytest.mark.parametrize("seed", range(6))
def test_rle_round_trip(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 20), rng.integers(1, 20))) < rng.random()
    code = rle_encode(mask)
    assert code == naive_rle(mask)
    np.testing.assert_array_equal(rle_decode(code, mask.shape), mask)


def test_label_runs_are_the_runs_of_each_mask():
    labels = np.random.default_rng(0).integers(0, 5, (13, 17)) * 3
    runs = label_runs(labels)
    assert list(runs) == [3, 6, 9, 12]
    assert all(code == naive_rle(labels == label) for label, code in runs.items())
    assert label_runs(np.zeros((4, 4), int)) == {} == label_runs(np.zeros((0, 4), int))


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1), (31, 2), (40, 50)])
def test_label_runs_of_any_shape(shape):
    rng = np.random.default_rng(sum(shape))
    coarse = rng.integers(0, 4, (shape[0] // 3 + 1, shape[1] // 3 + 1)).repeat(3, 0).repeat(3, 1)
    for labels in (coarse[: shape[0], : shape[1]], np.ones(shape, int), rng.integers(0, 3, shape)):
        runs = label_runs(labels)
        assert list(runs) == np.unique(labels[labels > 0]).tolist()
        assert all(code == naive_rle(labels == label) for label, code in runs.items())


@pytest.mark.parametrize(
    "code",
    [
        "1",
        "0 3",
        "1 0",
        "1 x",
        "5 3",
        "-1 2",
        "7 1",
        "99999999999999999999 1",
        "1 9223372036854775807",
        "1 2 2 1",
        "3 2 1 6",
        "1 6 " * 100_000,
    ],
)
def test_wrong_runs_are_refused(code):
    with pytest.raises(UserError, match="run-length code"):
        rle_decode(code, (2, 3))


def test_the_higher_score_keeps_the_pixel():
    masks = np.zeros((1, 5, 3), bool)
    masks[0, 0:3, 0] = masks[0, 1:4, 1] = masks[0, 2:5, 2] = True
    scores = np.array([0.5, 0.9, 0.7])
    labels = remove_overlaps(masks, scores)
    np.testing.assert_array_equal(labels, [[3, 1, 1, 1, 2]])
    np.testing.assert_array_equal(ranked_scores(labels, scores), [0.9, 0.7, 0.5])


@pytest.mark.parametrize("seed", range(4))
def test_overlap_removal_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    masks, scores = rng.random((7, 8, 6)) < 0.4, rng.permutation(6) / 6
    labels = remove_overlaps(masks, scores)
    rank = np.argsort(np.argsort(-scores)) + 1
    for y in range(7):
        for x in range(8):
            claims = rank[masks[y, x]]
            assert labels[y, x] == (claims.min() if len(claims) else 0)


@pytest.mark.parametrize("seed", range(6))
def test_label_map_of_overlapping_patches(seed):
    rng = np.random.default_rng(seed)
    shape, patches = (40, 50), []
    for _ in range(30):
        y, x = rng.integers(0, (38, 48))
        height, width = rng.integers(0, (min(12, 41 - y), min(12, 51 - x)))
        patches.append((int(y), int(x), rng.random((height, width)) < 0.7))
    scores = rng.integers(0, 10, 30) / 10  # some are equal: the first of them wins
    masks = np.zeros((*shape, 30), bool)
    for i, (y, x, patch) in enumerate(patches):
        masks[y : y + patch.shape[0], x : x + patch.shape[1], i] = patch
    ranks = np.argsort(np.argsort(-scores, kind="stable")) + 1
    best = np.where(masks, ranks, 99).min(axis=-1)
    labels = label_map(patches, scores, (*shape, 3))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.where(best == 99, 0, best))
    np.testing.assert_array_equal(remove_overlaps(masks, scores), labels)


def test_hidden_instances_vanish_with_their_scores():
    masks = np.ones((2, 2, 2), bool)
    masks[0, :, 1] = False
    labels = remove_overlaps(masks, np.array([0.9, 0.8]))
    assert np.unique(labels).tolist() == [1]
    assert ranked_scores(labels, np.array([0.9, 0.8])).tolist() == [0.9]
    assert remove_overlaps(np.zeros((3, 4, 0), bool), np.zeros(0)).shape == (3, 4)
    assert ranked_scores(np.zeros((3, 4), int), np.zeros(0)).tolist() == []


def test_mask_to_rle():
    masks = np.zeros((2, 2, 2), bool)
    masks[:, 0, 0] = masks[0, :, 1] = True
    assert mask_to_rle("a", masks, np.array([0.6, 0.7])) == "a,1 1 3 1\na,2 1"
    assert mask_to_rle("a", masks[..., :0], np.zeros(0)) == "a,"


def test_file_round_trip(tmp_path):
    rng = np.random.default_rng(1)
    labels = {
        "b": rng.integers(0, 4, (6, 9)),
        "a": np.zeros((5, 5), int),
        "c,d": np.eye(4, dtype=int),
    }
    path = tmp_path / "new" / "submit.csv"
    writer = SubmissionWriter(path)
    for image_id, image_labels in labels.items():
        writer.add(image_id, image_labels, np.full(len(np.unique(image_labels)) - 1, 0.25))
    assert not path.exists() and writer.partial.exists()
    writer.close()
    assert sorted(p.name for p in path.parent.iterdir()) == ["scores.csv", "submit.csv"]
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["ImageId", "EncodedPixels"] and ["a", ""] in rows
    assert len(rows) == 1 + 3 + 1 + 1
    submission = Submission(path)
    assert submission.image_ids == ["b", "a", "c,d"]
    for image_id, image_labels in labels.items():
        np.testing.assert_array_equal(submission.labels(image_id, image_labels.shape), image_labels)
    assert submission.scores("b").tolist() == [0.25] * 3
    assert submission.scores("a").tolist() == []
    assert submission.labels("unknown", (3, 2)).tolist() == [[0, 0]] * 3


def test_an_interrupted_file_keeps_its_rows_under_another_name(tmp_path):
    path = tmp_path / "submit.csv"
    path.write_text("old")
    writer = SubmissionWriter(path)
    writer.add("a", np.eye(3, dtype=int))
    writer.close(complete=False)
    assert path.read_text() == "old"
    assert Submission(writer.partial).image_ids == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_error(tmp_path):
    (tmp_path / "submit.csv.partial").symlink_to("/dev/full")
    writer = SubmissionWriter(tmp_path / "submit.csv")
    for _ in range(2):
        with pytest.raises(UserError, match="submit.csv: cannot be written .No space"):
            writer.add("a", np.eye(3, dtype=int))
    with pytest.raises(UserError, match="submit.csv: cannot be written .No space"):
        writer.close()
    writer = SubmissionWriter(tmp_path / "submit.csv")
    with pytest.raises(UserError):
        writer.add("a", np.eye(3, dtype=int))
    writer.close(complete=False)  # the error has been raised already
    assert not (tmp_path / "submit.csv").exists()


def test_files_of_others(tmp_path):
    path = tmp_path / "other.csv"
    path.write_bytes(b"\xef\xbb\xbfImageId,EncodedPixels\r\na, 1 2\r\na, 4 1\r\nb,\r\n")
    submission = Submission(path)
    np.testing.assert_array_equal(submission.labels("a", (2, 2)), [[1, 0], [1, 2]])
    assert submission.scores("a") is None  # not in the file: not known
    assert submission.image_ids == ["a", "b"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "first line"),
        ("id,runs\na,1 1\n", "first line"),
        ("ImageId,EncodedPixels\na,1 1,2\n", "line 2"),
        ("ImageId,EncodedPixels\n,1 1\n", "line 2"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Submission(path)


def test_wrong_rows_name_their_line(tmp_path):
    path = tmp_path / "wrong.csv"
    path.write_text("ImageId,EncodedPixels\na,1 2\na,2 2\nb,1 99\n")
    with pytest.raises(UserError, match="line 3: overlaps"):
        Submission(path).labels("a", (2, 2))
    with pytest.raises(UserError, match="line 4: .*outside"):
        Submission(path).labels("b", (2, 2))
    with pytest.raises(UserError, match="no such file"):
        Submission(tmp_path / "absent.csv")


def test_a_mask_that_overlaps_itself_is_refused(tmp_path):
    path = tmp_path / "wrong.csv"
    path.write_text("ImageId,EncodedPixels\na,1 2 3 1\nb,1 3 2 1\n")
    assert Submission(path).labels("a", (2, 2)).sum() == 3
    with pytest.raises(UserError, match="wrong.csv line 3: .* the mask overlaps itself"):
        Submission(path).labels("b", (2, 2))


@pytest.mark.parametrize("scores", ["a,1e999", "a,nan", "a,-1", "a", "a,x", ""])
def test_wrong_scores_are_refused(scores, tmp_path):
    (tmp_path / "x.csv").write_text("ImageId,EncodedPixels\na,1 2\n")
    (tmp_path / "scores.csv").write_text(f"ImageId,Score\n{scores}\n\n")
    with pytest.raises(UserError, match="scores.csv: not a readable list of ImageId,Score"):
        Submission(tmp_path / "x.csv")


def test_other_numbers_of_scores_are_said(tmp_path):
    (tmp_path / "x.csv").write_text("ImageId,EncodedPixels\na,1 2\nb,1 1\n")
    (tmp_path / "scores.csv").write_text("ImageId,Score\na,.5\nb,.5\nb,.4\n")
    with pytest.warns(MRCNNWarning, match="number of scores for 1 images .first: .?b.?.: their"):
        submission = Submission(tmp_path / "x.csv")
    assert submission.scores("a").tolist() == [0.5] and submission.scores("b") is None


def test_named_pipes_and_long_fields(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="pipe.csv: not a regular file"):
        Submission(tmp_path / "pipe.csv")
    runs = " ".join(f"{2 * i + 1} 1" for i in range(40_000))
    (tmp_path / "long.csv").write_text(f"ImageId,EncodedPixels\na,{runs}\n")
    assert (Submission(tmp_path / "long.csv").labels("a", (300, 300)) > 0).sum() == 40_000
    assert csv.field_size_limit() == 128 * 1024  # of the process, as before


def test_names_that_are_no_utf_8(tmp_path):
    name = os.fsdecode(b"n\xff" + b"x" * 253)
    writer = SubmissionWriter(tmp_path / "submit.csv")
    writer.add(name, np.eye(3, dtype=int), np.array([0.5]))
    writer.close()
    submission = Submission(tmp_path / "submit.csv")
    assert submission.image_ids == [name] and submission.scores(name).tolist() == [0.5]


def test_images_that_only_the_submission_has(tmp_path):
    (tmp_path / "x.csv").write_text("ImageId,EncodedPixels\na,1 2\nb,1 1\nc,\n")
    dataset = Dataset()
    dataset.add_image("nucleus", "a", None)
    dataset.image_reference = lambda i: dataset.image_info[i]["id"]
    dataset.prepare()
    submission = Submission(tmp_path / "x.csv")
    assert "2 of its images are not in the subset" in unknown_images(submission, dataset)
    dataset.add_image("nucleus", "b", None)
    dataset.add_image("nucleus", "c", None)
    dataset.prepare()
    assert unknown_images(submission, dataset) == ""
