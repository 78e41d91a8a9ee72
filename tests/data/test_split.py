"""The split of named images into training and validation."""

import csv
import os

import pytest

from mrcnn.data.split import read_split, split, write_split
from mrcnn.errors import MRCNNWarning, UserError


def pairs_of(names):
    from mrcnn.data.pairs import Pair

    return [Pair(name, None, None) for name in names]


NAMES = [f"plate{i % 3}/{i:03}" for i in range(400)]


def test_split_follows_names_and_seed_only():
    whole_split = split(pairs_of(NAMES), 0.2, 7)
    assert list(whole_split) == NAMES and set(whole_split.values()) == {"train", "val"}
    assert split(pairs_of(NAMES[::-1]), 0.2, 7) == whole_split
    part = split(pairs_of(NAMES[::3]), 0.2, 7)
    assert part.items() <= whole_split.items()
    share = list(whole_split.values()).count("val") / len(NAMES)
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / len(NAMES)) ** 0.5
    assert split(pairs_of(NAMES), 0.2, 8) != whole_split
    larger = split(pairs_of(NAMES), 0.3, 7)
    assert all(larger[name] == "val" for name in NAMES if whole_split[name] == "val")
    # What the rule gives is part of the interface: other versions must not mix the subsets.
    assert [name for name in NAMES[:20] if whole_split[name] == "val"] == PINNED


PINNED = ["plate2/002", "plate0/006", "plate2/017"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_subsets_have_images(share):
    for seed in range(40):
        assert set(split(pairs_of("ab"), share, seed).values()) == {"train", "val"}
        assert split(pairs_of("a"), share, seed) == {"a": "train"}
        # What is moved to have one is what a larger share would have moved.
        few, more = (split(pairs_of("abcdef"), s, seed) for s in (0.001, max(share, 0.3)))
        assert {name for name in few if few[name] == "val"} <= {
            name for name in more if more[name] == "val"
        }
    assert split([], share, 0) == {}


def test_shares():
    assert set(split(pairs_of(NAMES), 0, 7).values()) == {"train"}
    for share in (1, -0.1, 2, float("nan")):
        with pytest.raises(UserError, match="for validation"):
            split(pairs_of(NAMES), share, 7)


def test_split_file(tmp_path):
    subsets = split(pairs_of(NAMES), 0.2, 7)
    write_split(tmp_path / "run" / "split.csv", subsets)
    assert read_split(tmp_path / "run" / "split.csv", pairs_of(NAMES), 0.5, 9) == subsets
    with open(tmp_path / "run" / "split.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "subset"] and [row[0] for row in rows[1:]] == sorted(NAMES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "text",
    [
        "image,subset\na,val\nb,train\n",
        "\ufeffimage;subset\r\nb;train\r\na;val\r\n",
        "subset,image,note\nval,a.tif,x\n\nTrain , b.png,\n",
        "image,subset\na,val\na,val\nb,train",
    ],
)
def test_split_file_edited_by_hand(text, tmp_path):
    (tmp_path / "split.csv").write_text(text, encoding="utf-8", newline="")
    assert read_split(tmp_path / "split.csv", pairs_of("ab"), 0, 0) == {"a": "val", "b": "train"}


def test_split_file_of_other_images(tmp_path):
    """New images come where they would have come without the file."""
    names = NAMES[:40]
    (tmp_path / "split.csv").write_text(
        "image,subset\ngone,val\n" + "\n".join(f"{name},train" for name in names[:20])
    )
    with pytest.warns(MRCNNWarning) as seen:
        found = read_split(tmp_path / "split.csv", pairs_of(names), 0.5, 7)
    assert "rows of images that do not exist, left out: 1 (first: gone)" in str(seen[0].message)
    assert f"not list, divided at random: 20 (first: {names[20]})" in str(seen[1].message)
    assert set(list(found.values())[:20]) == {"train"}
    fresh = split(pairs_of(names), 0.5, 7)
    assert [found[name] for name in names[20:]] == [fresh[name] for name in names[20:]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "first line must name"),
        ("a,val\nb,train", "first line must name"),
        ("image,subset\na,test\nb,train", "line 2: the subset of .?a.? is .?test.?; it must"),
        ("image,subset\na,train\nb", "line 3: the subset of .?b.? is missing"),
        ("image,subset\na,val\na,train\nb,train", "line 3: .?a.? is in both subsets"),
        ("image,subset\n" + "a" * 200_000 + ",val\nb,train", ""),
        ("image,subset\na," + "v" * 200_000, ""),
        ("image,subset\nx,val", r"lists none of the 2 images \(first: a\)"),
        ("image,subset\na,val\nb,val", "leaves no image for training"),
        ("image,subset\n\xe4,val", "not in UTF-8"),
    ],
)
def test_wrong_split_files(text, words, tmp_path):
    (tmp_path / "split.csv").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"split.csv.*{words}"):
        read_split(tmp_path / "split.csv", pairs_of("ab"), 0.2, 0)


def test_split_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="split.csv: no such file"):
        read_split(tmp_path / "split.csv", pairs_of("ab"), 0.2, 0)
    os.mkfifo(tmp_path / "split.csv")
    with pytest.raises(UserError, match="split.csv: not a regular file, but a named pipe"):
        read_split(tmp_path / "split.csv", pairs_of("ab"), 0.2, 0)


def test_split_of_names_that_are_no_utf_8(tmp_path):
    names = [os.fsdecode(b"a\xff"), "b\u2028c"]
    subsets = dict(zip(names, ("val", "train"), strict=True))
    write_split(tmp_path / "split.csv", subsets)
    assert read_split(tmp_path / "split.csv", pairs_of(names), 0, 0) == subsets
