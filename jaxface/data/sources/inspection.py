"""What is wrong with images from outside, before anybody trains on them: damaged, tiny, empty and repeated ones."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.images import SUFFIXES, CorruptImage, check_bytes, decode_image
from jaxface.data.sources.listing import contents, natural_key, subfolders, unreadable
from jaxface.data.sources.packs import read_bin
from jaxface.data.sources.recordio import RecordIOFaces
from jaxface.data.sources.source import Source
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

PROBLEMS = {
    "unreadable": "cannot be read",
    "tiny": "smaller than a face needs",
    "blank": "of one color",
    "two names": "the same photograph in two classes",
    "alike": "nearly the same photograph in two classes",
    "duplicate": "the same photograph again in its class",
    "few": "classes with too few photographs",
}
"""What can be wrong, the worst first, in words."""

BLANK = 4.0
"""Standard deviation of the gray levels below which an image shows nothing."""
HASH_BITS, ALIKE_BITS = 256, 20
"""Of a difference hash, and how many of them may differ in images that are nearly the same."""
_MOST_IN_BAND = 64  # images with 16 bits of a hash in common; of more these tell nothing


@dataclasses.dataclass(frozen=True)
class RawImages:
    """Images as they stand in a folder, a file or a source, with nothing put in the place of a damaged one.

    Attributes:
      kind: "folder", "bin", "recordio" or the kind of data.
      title: for people.
      names: [N], what to call each image.
      labels: [N] int32, the class of each.
      class_names: one per class.
      read: index -> uint8 [H, W, 3 or 1]; raises CorruptImage.
      scopes: [N] int32; images of one scope are compared with each other.
      people: [N] int32, who is in each image; as the labels unless given.
      grouped: whether a class is a person or a thing, of which a training needs several images.
      boxes: index -> [M, 4] (y0, x0, y1, x1) pixels of what is in an image, where that is known.
      ignored: ending of files that are no images -> how many lie between them.
    """

    kind: str
    title: str
    names: Sequence[str]
    labels: np.ndarray
    class_names: Sequence[str]
    read: Callable[[int], np.ndarray]
    scopes: np.ndarray | None = None
    people: np.ndarray | None = None
    grouped: bool = True
    boxes: Callable[[int], np.ndarray] | None = None
    ignored: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
      problem: one of `PROBLEMS`.
      image: index of the image; None where it is of a class.
      label: its class.
      detail: in words, such as the name of the other image.
      other: index of the other image, or None.
    """

    problem: str
    image: int | None
    label: int
    detail: str = ""
    other: int | None = None


def open_raw(path: str | os.PathLike) -> RawImages:
    """The images of a path whose kind is seen: a folder by class or of images, a `.bin` pack, a `.rec` or the folder with it.

    Raises:
      UserError: it is none of them, or holds no image.
    """
    path = local_path("source", path)
    if path.is_dir():
        try:
            records = sorted(file for file in contents(path).files if file.suffix == ".rec")
            return _record_images(path) if records else _folder_images(path)
        except OSError as error:
            raise UserError(f"source: cannot read {unreadable(error, path)}") from None
    if not path.is_file():
        raise UserError(f"source: no file or folder {path}")
    if path.suffix == ".bin":
        return _pack_images(path)
    if path.suffix == ".rec":
        return _record_images(path)
    raise UserError(
        f"source: needs a folder of images, a .bin pack or a .rec, got {path}; name other data by --data KIND"
    )


def _folder_images(root: pathlib.Path) -> RawImages:
    """Images of the sub-folders, each a class, or of the folder itself where it has none."""
    folders = {folder.name: folder for folder in subfolders(root)}
    classes = {name: folder.images for name, folder in folders.items() if folder.images}
    grouped = bool(classes)
    inside = [contents(folder.path).files for folder in folders.values()]
    if not classes:
        files = contents(root).files
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        classes = {name_text(root.resolve().name): sorted(images, key=lambda file: natural_key(file.name))}
        inside = [files]
        if not images:
            raise UserError(f"source: no image in {root} or its sub-folders")
    ignored = collections.Counter(
        name_text(file.suffix.lower()) or "no ending"
        for files in inside
        for file in files
        if file.suffix.lower() not in SUFFIXES
    )
    paths = [path for files in classes.values() for path in files]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in classes.values()])
    return RawImages(
        kind="folder",
        title=f"folder {name_text(root.resolve().name)}",
        names=[name_text(path.relative_to(root)) for path in paths],
        labels=labels,
        class_names=list(classes),
        read=lambda index: decode_image(paths[index]),
        grouped=grouped,
        ignored=ignored,
    )


def _pack_images(path: pathlib.Path) -> RawImages:
    """Both images of every pair, the genuine pairs as one class and the impostor pairs as another."""
    encoded, same = read_bin(path)
    if not encoded:
        raise UserError(f"source: no pair in {path}")
    pairs = np.repeat(np.arange(len(same), dtype=np.int32), 2)
    second = np.tile(np.array([0, 1], np.int32), len(same))
    return RawImages(
        kind="bin",
        title=f"bin {name_text(path.stem)}",
        names=[
            f"pair {pair}, {('first', 'second')[which]}" for pair, which in zip(pairs, second, strict=True)
        ],
        labels=np.repeat(~same, 2).astype(np.int32),
        class_names=["same person", "two people"],
        read=lambda index: decode_image(encoded[index]),
        scopes=pairs,  # an image may be in many pairs
        people=2 * pairs + np.where(np.repeat(same, 2), 0, second),
        grouped=False,
    )


def _record_images(path: pathlib.Path) -> RawImages:
    source = RecordIOFaces(path)
    ignored = collections.Counter(source.left_out)
    return RawImages(
        kind="recordio",
        title=f"recordio {name_text(path.parent.name if path.suffix == '.rec' else path.name)}",
        names=[f"record at byte {offset}" for offset in source.record_names.tolist()],
        labels=source.labels,
        class_names=source.class_names,
        read=lambda index: decode_image(source.encoded(index)),
        ignored=ignored,
    )


def raw_source(kind: str, title: str, source: Source) -> RawImages:
    """The images of any source; of one that lets another image stand in for a damaged one, the damaged are unreadable.

    Raises:
      UserError: records without images that can be shown, such as embeddings.
    """
    if (
        len(source.image_shape) != 3
        or source.image_shape[-1] not in (1, 3)
        or min(source.image_shape[:2]) < 2
    ):
        raise UserError(f"data: {kind} has no images to show, its records are {source.image_shape}")
    names = getattr(source, "record_names", None)

    def read(index: int) -> np.ndarray:
        image = source[index]["image"]
        check_bytes("image", image)
        shown = getattr(source, "shown", None)
        if shown is not None and shown(index) != index:
            raise CorruptImage("another image stands in for it")
        return image

    def boxes(index: int) -> np.ndarray:
        record = source[index]
        return record["boxes"][record["box_mask"]]

    detection = hasattr(source, "max_objects")
    return RawImages(
        kind=kind,
        title=title,
        names=[f"record {i}" for i in range(len(source))] if names is None else [str(name) for name in names],
        labels=np.zeros(len(source), np.int32) if detection else np.asarray(source.labels, np.int32),
        class_names=["images"] if detection else list(source.class_names),
        read=read,
        grouped=not detection,
        boxes=boxes if detection else None,
    )


def difference_hash(image: np.ndarray) -> np.ndarray:
    """[16] uint16: whether each of 16 × 16 places of a shrunken gray image is brighter than the one to its left.

    Compression, size and brightness change few of the 256 bits; images that have nothing in common differ in half.

    Args:
      image: [H, W, 3 or 1] uint8.
    """
    gray = image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (17, 16), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1], axis=1).view(np.uint16)[:, 0].copy()


@dataclasses.dataclass(frozen=True)
class _Looked:
    """What one image is like; `error` where it cannot be read."""

    error: str = ""
    size: tuple[int, int] = (0, 0)
    spread: float = 0.0
    digest: bytes = b""
    hash: np.ndarray | None = None


def _look(images: RawImages, index: int) -> _Looked:
    try:
        image = images.read(index)
    except CorruptImage as error:
        return _Looked(error=str(error))
    digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16, person=repr(image.shape).encode())
    return _Looked(
        "", image.shape[:2], float(image.mean(axis=-1).std()), digest.digest(), difference_hash(image)
    )


def chosen_images(images: RawImages, limit: int) -> np.ndarray:
    """Indices of at most about `limit` images: all, or those of whole classes (pairs) spread evenly over the set, in order."""
    if len(images) <= limit:
        return np.arange(len(images))
    groups = images.labels if images.scopes is None else images.scopes
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(group_of)
    order = np.argsort(first, kind="stable")
    wanted = max(round(len(order) * limit / len(images)), 1)
    spread = order[np.linspace(0, len(order) - 1, wanted).round().astype(int)]
    spread = spread[np.cumsum(sizes[spread]) <= limit]
    if not len(spread):  # one class alone has more
        return np.linspace(0, len(images) - 1, limit).round().astype(int)
    return np.flatnonzero(np.isin(group_of, spread))


def inspect(
    images: RawImages,
    *,
    indices: np.ndarray | None = None,
    smallest: int = 32,
    few: int = 2,
) -> list[Finding]:
    """What is wrong with images, the worst first (`PROBLEMS`) and in their order.

    Two images are the same where their pixels are, and nearly the same where at most 20 of the 256 bits of their difference
    hashes differ and 16 neighboring ones agree; these are looked for across classes only.

    Args:
      images: where they come from.
      indices: those to look at; all unless given. Classes are counted in all.
      smallest: shortest side of an image that is large enough, pixels, ≥ 1.
      few: images that a class needs, ≥ 0.

    Raises:
      UserError: a number out of its range.

    Example:
      >>> import numpy as np
      >>> photographs = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)[[0, 1, 2, 1]]
      >>> images = RawImages(
      ...     kind="array", title="four", names=["a", "b", "c", "d"], labels=np.array([0, 0, 1, 1]),
      ...     class_names=["Ada", "Bob"], read=photographs.__getitem__,
      ... )
      >>> [(finding.problem, images.names[finding.image], finding.detail) for finding in inspect(images)]
      [('two names', 'd', 'as b')]
    """
    check_number("smallest", smallest, AtLeast(1))
    check_number("few", few, AtLeast(0))
    indices = np.arange(len(images)) if indices is None else np.asarray(indices)
    people = images.labels if images.people is None else images.people
    scopes = np.zeros(len(images), np.int32) if images.scopes is None else images.scopes
    findings: list[Finding] = []
    first_of: dict[tuple[int, bytes], int] = {}
    bands: dict[tuple[int, int, int], list[int]] = collections.defaultdict(list)
    hashes: dict[int, np.ndarray] = {}
    for index, looked in zip(indices.tolist(), _looks(images, indices), strict=True):
        label, scope = int(images.labels[index]), int(scopes[index])

        def found(problem, detail, other=None, index=index, label=label):
            findings.append(Finding(problem, index, label, detail, other))

        if looked.error:
            found("unreadable", looked.error)
            continue
        if min(looked.size) < smallest:
            found("tiny", f"{looked.size[1]} x {looked.size[0]} pixels")
        if looked.spread < BLANK:
            found("blank", f"its gray levels deviate by {looked.spread:.1f}")
        first = first_of.setdefault((scope, looked.digest), index)
        if first != index:
            problem = "duplicate" if people[first] == people[index] else "two names"
            found(problem, f"as {images.names[first]}", first)
            continue
        if looked.spread < BLANK:  # a hash of nothing
            continue
        hashes[index] = looked.hash
        near = [bands[scope, place, int(band)] for place, band in enumerate(looked.hash)]
        others = {other for band in near if len(band) <= _MOST_IN_BAND for other in band}
        for other in sorted(others):
            if people[other] != people[index]:
                differing = int(np.bitwise_count(hashes[other] ^ looked.hash).sum())
                if differing <= ALIKE_BITS:
                    found(
                        "alike", f"as {images.names[other]}, but for {differing} of {HASH_BITS} bits", other
                    )
                    break
        for band in near:
            band.append(index)
    if images.grouped:
        counts = np.bincount(images.labels, minlength=len(images.class_names))
        for label in np.flatnonzero(counts < few).tolist():
            members = np.flatnonzero(images.labels == label)
            detail = f"{counts[label]} of {few}"
            findings.append(Finding("few", int(members[0]) if len(members) else None, label, detail))
    order = list(PROBLEMS)
    return sorted(findings, key=lambda finding: order.index(finding.problem))


def _looks(images: RawImages, indices: np.ndarray) -> Iterable[_Looked]:
    """What each image is like, a few read at a time."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for start in range(0, len(indices), 256):
            yield from pool.map(lambda index: _look(images, index), indices[start : start + 256].tolist())
