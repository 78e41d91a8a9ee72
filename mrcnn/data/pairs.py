"""Which of the user's own images belong to which labels.

An image's name is its path below the folder, without the ending: plate1/a for plate1/a.tif. Where a
file holds several images, each has its place appended: plate1/stack_z002.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mrcnn.data.coco import CocoLabels, read_coco
from mrcnn.data.label_images import LabelImage
from mrcnn.data.labels import Labels
from mrcnn.data.rois import RoiLabels
from mrcnn.errors import MRCNNWarning, UserError, quoted
from mrcnn.images import zarr
from mrcnn.images.image_files import LazyImage, open_image, open_images
from mrcnn.images.listing import ENDINGS

# What may follow an image's name in the name of its labels: what people use; Cellpose's come last.
LABEL_SUFFIXES = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_cp_masks", "_rois")
# What the image's own name may end in instead.
IMAGE_SUFFIXES = ("_img", "_image")
# JPEG changes numbers.
LABEL_ENDINGS = tuple(ending for ending in ENDINGS if ending not in (".jpg", ".jpeg"))
FIRST_CHANNEL = 1  # which of them does not matter where only the planes are counted


@dataclass(frozen=True)
class Pair:
    """An image and its labels."""

    name: str
    image: Path
    labels: Labels
    suffix: str = ""  # which of the images of the file, where it has several
    channel: int | str | None = None  # number, from 1, or name; None for colours and grey

    def open(self) -> LazyImage:
        """The image, of which the header is read. Raises UserError where that cannot be done."""
        return open_image(self.image, self.suffix, self.channel)

    def size(self) -> tuple[int, int]:
        """(H, W) of the image, from its header. Raises UserError where its labels' differs."""
        size, other = self.open().shape[:2], self.labels.size()
        if other is not None and other != size:
            raise UserError(
                f"{self.labels.files[0]}: labels of {other[0]} x {other[1]} pixels for "
                f"{self.image}, which has {size[0]} x {size[1]}"
            )
        return size


def find_pairs(
    images: str | Path, labels: str | Path, channel: int | str | None = None
) -> list[Pair]:
    """The images below a folder that have labels, sorted by name.

    Warns, once each, of images without labels and labels without images, which are left out.

    Args:
        images: folder with files of listing.ENDINGS, also in folders inside it. A file may hold
            several images (a stack, a time series).
        labels: a folder or a COCO JSON file. The folder (the same, one inside it, or any other)
            has the same folders and, for an image `a.tif`, a label image `a.png` or `a.tif`, or
            ImageJ ROIs `a.zip`, `a.roi` or `a/*.roi`; the name may end in one of LABEL_SUFFIXES.
            Label images take precedence over ROIs. COCO's file_name is the image's path, starting
            at any folder; the path with most in common counts, whatever its ending. The labels of
            a stack are a stack with as many planes, or one file per plane, named like the stack
            followed by `_z001` and so on.
        channel: of the images, see `image_files.find_images`.

    Raises:
        UserError: there is no pair at all, or more than one choice for a pair.
    """
    images, labels = Path(images), Path(labels)
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images")
    if labels.is_file() and labels.suffix.lower() != ".json":
        raise UserError(f"{labels}: labels must be a folder or a COCO file that ends in .json")
    if not labels.exists():
        raise UserError(f"{labels}: no such folder or file of labels")
    by_name = _paths_by_name(images, labels)
    if not by_name:
        raise UserError(f"{images}: no images ({', '.join(ENDINGS)}) in this folder")
    match = _match_coco if labels.is_file() else _match_folder
    found, unused = match(by_name, images, labels)
    # The images of a stack without labels may each have labels of their own.
    planes = _planes_by_name([name for name in by_name if name not in found], by_name, images)
    if planes:
        own = {name: by_name[stack] for name, (stack, _) in planes.items()}
        found_there, unused_there = match(own, images, labels)
        found |= found_there
        unused = [path for path in unused if path in unused_there]
        divided = {planes[name][0] for name in found_there}
        by_name = {name: path for name, path in by_name.items() if name not in divided}
        by_name |= {name: path for name, path in own.items() if planes[name][0] in divided}
    if not found:
        raise UserError(_nothing_found(by_name, images, labels, unused))
    bare = [str(images / path) for name, path in by_name.items() if name not in found]
    warn_of(bare, "Images without labels, left out")
    warn_of(unused, "Labels without an image, left out")
    pairs = [
        Pair(name, images / path, found[name], planes[name][1] if name in planes else "", channel)
        for name, path in by_name.items()
        if name in found
    ]
    return sorted((one for pair in pairs for one in _of_stack(pair)), key=lambda pair: pair.name)


def _planes_by_name(
    names: Iterable[str], by_name: Mapping[str, PurePosixPath], images: Path
) -> dict[str, tuple[str, str]]:
    """For files with several images: name of each of these -> (name of the file, suffix)."""
    found = {}
    for name in names:
        planes = _images_in(images / by_name[name])
        if len(planes) > 1:
            found |= {f"{name}_{plane.name}": (name, plane.name) for plane in planes}
    return found


def _images_in(path: Path) -> list[LazyImage]:
    """The images of a file; none where it cannot be read, which is reported on reading it."""
    try:
        return open_images(path, FIRST_CHANNEL)
    except UserError:
        return []


def _of_stack(pair: Pair) -> list[Pair]:
    """The pairs of a file with several images, whose labels are a file with as many."""
    planes = [] if pair.suffix else _images_in(pair.image)
    if planes and planes[0].plane.left_out:
        warn_of([f"{pair.image}: {reason}" for reason in planes[0].plane.left_out], "Left out")
    if len(planes) < 2:
        return [pair]
    suffixes = [plane.name for plane in planes]
    if not isinstance(pair.labels, LabelImage):
        raise UserError(
            f"{pair.labels.files[0]}: labels of one image, but {pair.image} has {len(suffixes)}; "
            f"name those of each as {pair.name}_{suffixes[0]} and so on"
        )
    return [
        replace(pair, name=f"{pair.name}_{suffix}", suffix=suffix, labels=labels)
        for suffix, labels in zip(suffixes, pair.labels.of_stack(suffixes), strict=True)
    ]


def _files(folder: Path, without: Path | None = None) -> list[PurePosixPath]:
    """All files below a folder, relative to it and sorted, except hidden ones and those below the
    folder `without`."""
    found = []
    seen: set[Path] = set()  # links may lead back
    for directory, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        here = Path(directory)
        inner = [here / name for name in folders if name[0] != "." and name != "__MACOSX"]
        if here.resolve() in seen:
            inner, names = [], []
        seen.add(here.resolve())
        inner = [path for path in inner if not (without and _same(path, without))]
        stored = [path.name for path in inner if zarr.is_image(path)]
        folders[:] = [path.name for path in inner if path.name not in stored]
        place = PurePosixPath(here.relative_to(folder).as_posix())
        found += [place / name for name in [*names, *stored] if name[0] != "."]
    return sorted(found)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed would look like one without images or labels."""
    raise UserError(f"{error.filename}: cannot be read ({error.strerror or error})") from None


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def image_name(path: PurePosixPath) -> str:
    """An image's name: without .tif or .ome.tif."""
    name = str(path)
    if path.name.lower().endswith(ENDINGS):
        name = name[: -len(path.suffix)]
    return name.removesuffix(".ome")


def _bare(name: str, suffixes: Sequence[str]) -> str:
    """The name without the longest of the suffixes that it ends in, whatever their case."""
    fitting = [s for s in suffixes if name.lower().endswith(s)]
    return name[: -max(map(len, fitting))] if fitting else name


def _paths_by_name(images: Path, labels: Path) -> dict[str, PurePosixPath]:
    """Paths of the images by name. Labels in the same folder are told by their names."""
    found: dict[str, PurePosixPath] = {}
    for path in _files(images, None if _same(images, labels) else labels):
        name = image_name(path)
        if not path.name.lower().endswith(ENDINGS) or (
            _same(images, labels) and _bare(name, LABEL_SUFFIXES) != name
        ):
            continue
        if name in found:
            raise UserError(
                f"{images}: holds both {found[name]} and {path}; keep one of them here "
                f"(labels: in a folder of their own, or named {name}_mask.png)"
            )
        found[name] = path
    return found


def _match_folder(
    by_name: Mapping[str, PurePosixPath],
    images: Path,
    folder: Path,
) -> tuple[dict[str, Labels], list[str]]:
    """(labels by image name, label files that belong to no image)."""
    same = _same(images, folder)
    taken = set(by_name.values()) if same else set()
    files = [path for path in _files(folder, None if same else images) if path not in taken]
    label_images = [path for path in files if path.name.lower().endswith(LABEL_ENDINGS)]
    rois = [path for path in files if path.name.lower().endswith((".zip", ".roi"))]
    by_folder: dict[PurePosixPath, list[PurePosixPath]] = {}
    for path in rois:
        if path.suffix.lower() == ".roi":
            by_folder.setdefault(path.parent, []).append(path)
    image_index = _index((image_name(path), [path]) for path in label_images)
    roi_index = _index(
        [(str(path.with_suffix("")), [path]) for path in rois]
        + [
            (str(place), sorted(group, key=lambda path: path.stem))
            for place, group in by_folder.items()
        ]
    )
    found: dict[str, Labels] = {}
    unused = dict.fromkeys(label_images + rois)
    for name, image in by_name.items():
        for index in (image_index, roi_index):
            candidates = _look_up(name, index)
            for path in sum(candidates, []):
                unused.pop(path, None)
            if name in found or not candidates:
                continue
            if len(candidates) > 1:
                raise UserError(
                    f"{folder}: both {candidates[0][0]} and {candidates[1][0]} may be "
                    f"the labels of {image}; keep one of them there"
                )
            paths = tuple(folder / path for path in candidates[0])
            found[name] = LabelImage(*paths) if index is image_index else RoiLabels(paths)
    return found, [str(folder / path) for path in unused]


# Candidates by name, which is whole (True) or what is left of it without a suffix (False).
Index = dict[tuple[str, bool], list[list[PurePosixPath]]]


def _index(named: Iterable[tuple[str, list[PurePosixPath]]]) -> Index:
    found: Index = {}
    for name, paths in named:
        found.setdefault((name, True), []).append(paths)
        if _bare(name, LABEL_SUFFIXES) != name:
            found.setdefault((_bare(name, LABEL_SUFFIXES), False), []).append(paths)
    return found


def _look_up(name: str, index: Index) -> list[list[PurePosixPath]]:
    """What fits an image's name best; several where they fit equally well."""
    for wanted in (name, _bare(name, IMAGE_SUFFIXES)):
        for whole in (True, False):
            if (wanted, whole) in index:
                return index[wanted, whole]
    return []


def _match_coco(
    by_name: Mapping[str, PurePosixPath],
    images: Path,
    file: Path,
) -> tuple[dict[str, CocoLabels], list[str]]:
    """(labels by image name, entries of the file that match no image)."""
    by_last: dict[str, list[str]] = {}
    for name in by_name:
        by_last.setdefault(PurePosixPath(name).name, []).append(name)
    above = images.resolve().parts
    claims: dict[str, list[tuple[Fit, CocoLabels]]] = {}
    unused = []
    for entry in read_coco(file):
        wanted = PurePosixPath(image_name(PurePosixPath(entry.file_name.replace("\\", "/"))))
        fits = [
            (_fit(wanted, PurePosixPath(name), above), name)
            for name in by_last.get(wanted.name, [])
        ]
        best = max(fits, default=(NO_FIT, ""))[0]
        names = [name for fit, name in fits if fit == best != NO_FIT]
        if len(names) > 1:
            raise UserError(
                f"{file}: {entry.file_name} may be {by_name[names[0]]} or "
                f"{by_name[names[1]]} in {images}; write more of its path there"
            )
        if names:
            claims.setdefault(names[0], []).append((best, entry))
        else:
            unused.append(entry.file_name)
    found: dict[str, CocoLabels] = {}
    for name, entries in claims.items():
        entries.sort(key=lambda claim: claim[0], reverse=True)
        if len(entries) > 1 and entries[0][0] == entries[1][0]:
            raise UserError(
                f"{file}: lists {by_name[name]} twice, as {entries[0][1].file_name} "
                f"and as {entries[1][1].file_name}"
            )
        found[name] = entries[0][1]
        unused += [entry.file_name for _, entry in entries[1:]]
    warn_of(
        [entry.file_name for entry in found.values() if not entry.annotations],
        f"{file}: images without any annotation, taken as images without nuclei",
    )
    return found, unused


# How well a path in a COCO file fits an image, larger being better: how many parts at the ends of
# the two paths are the same, whether those are all of the path in the file, and whether that is the
# image's name.
Fit = tuple[int, bool, bool]
NO_FIT: Fit = (0, False, False)


def _fit(wanted: PurePosixPath, name: PurePosixPath, above: Sequence[str]) -> Fit:
    """above: the folders that the image's name is below."""
    parts = (*above, *name.parts)
    same = 0
    for one, other in zip(reversed(wanted.parts), reversed(parts), strict=False):
        if one != other:
            break
        same += 1
    if same < min(len(wanted.parts), len(name.parts)):
        return NO_FIT
    return same, same == len(wanted.parts), wanted == name


def _nothing_found(
    by_name: Mapping[str, PurePosixPath], images: Path, labels: Path, unused: Sequence[str]
) -> str:
    name, image = next(iter(by_name.items()))
    start = f"{labels}: no labels for any of the {len(by_name)} images in {images}"
    if labels.is_file():
        there = (
            f"the first of {len(unused)} listed there is {quoted(unused[0])}"
            if unused
            else "the file lists no images"
        )
        return f"{start}; the first of them is {image}, and {there}"
    bare = PurePosixPath(_bare(name, IMAGE_SUFFIXES)).name
    hint = ""
    for path in _files(labels):
        if path.suffix.lower() == ".json":
            hint = f". It holds {path}: if that is a COCO file, name the file itself"
        elif path.name.endswith("_seg.npy"):
            hint = ". Cellpose's _seg.npy files are not read: save its masks as PNG or TIFF"
    return (
        f"{start}; tried for {image}: {bare}.png, {bare}.tif, {bare}.tiff, {bare}.zip, "
        f"{bare}.roi and {bare}/*.roi, also with {', '.join(LABEL_SUFFIXES)} after "
        f"{bare}{hint}"
    )


def warn_of(names: Sequence[str], what: str) -> None:
    """Warn of these names in one line, if there are any."""
    if names:
        warnings.warn(f"{what}: {len(names)} (first: {names[0]})", MRCNNWarning, stacklevel=3)


def check_pairs(pairs: Sequence[Pair]) -> list[str]:
    """What is wrong with the files, one line per pair, as far as their headers tell: sizes that
    differ, files that cannot be read."""
    lines = []
    for pair in pairs:
        try:
            pair.size()
        except UserError as error:
            lines.append(str(error))
    return lines
