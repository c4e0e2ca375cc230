"""Folders in the layout of PASCAL VOC: images with an XML file each."""

import pathlib
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from jaxface.data.sources.annotated import (
    AnnotatedImage,
    AnnotatedSource,
    Surplus,
    check_present,
    inside,
    read_lines,
    read_text,
)
from jaxface.data.sources.images import SUFFIXES
from jaxface.data.sources.listing import contents, natural_key
from jaxface.errors import UserError
from jaxface.paths import name_text, reason_of, user_path

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_XML = 1 << 24  # bytes of one file; the published ones have some thousand


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of an XML document that declares nothing: with a document type there come entities, which may name files of this
    machine or unfold to any size.

    Raises:
      ValueError: no XML, or a document type.
    """
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_):
        raise ValueError("it declares a document type")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(str(error)) from error
    return builder.close()


def _number(element: ElementTree.Element | None, tag: str) -> float:
    """The number in a child, NaN where there is none."""
    try:
        return float(element.findtext(tag, "nan"))
    except (AttributeError, ValueError):
        return float("nan")


def _annotation(path: pathlib.Path) -> ElementTree.Element:
    try:
        root = parse_xml(read_text("root", path, limit=_XML))
        if root.tag != "annotation":
            raise ValueError(f"its root is <{root.tag[:40]}>")
        return root
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"root: needs VOC's <annotation>, {name_text(path)} has none: {' '.join(str(error).split())[:120]}"
        ) from error


def voc(
    root: str | pathlib.Path,
    part: str | None = None,
    *,
    image_size: int,
    categories: Sequence[str] = CLASSES,
    max_objects: int = 64,
    aspects: Sequence[float] = (1.0,),
    surplus: Surplus = "largest",
) -> AnnotatedSource:
    """Opens one part of a folder in the layout of VOC.

    Files name the first and the last pixel of an object, counted from 1: x0 = xmin - 1 and x1 = xmax. Difficult objects are to be
    ignored in records; `ground_truth` has `difficult` [n].

    Args:
      root: the folder with `Annotations`, `JPEGImages` and `ImageSets`.
      part: of `ImageSets/Main`, such as "trainval"; every annotation unless given.
      categories: names of the classes, in order. Objects of VOC's other classes are left out; of any other name they are counted
        with the boxes that cannot be used.
      image_size, max_objects, aspects, surplus: see `AnnotatedSource`.

    Raises:
      UserError: a file or an image that is missing, a file of another format, or no category.
    """
    root = user_path("root", root)
    folder = root / "Annotations"
    if not categories:
        raise UserError("categories: needs at least one name, got none")
    if part is None:
        try:
            files = contents(folder).files
            names = sorted((path.stem for path in files if path.suffix == ".xml"), key=natural_key)
        except OSError as error:
            raise UserError(
                f"root: needs a folder with Annotations, {name_text(folder)}: {reason_of(error)}"
            ) from error
    else:
        names = [
            line.split()[0] for _, line in read_lines("part", root / "ImageSets" / "Main" / f"{part}.txt")
        ]
    classes = {name: row for row, name in enumerate(categories)}
    result = []
    for name in names:
        xml = inside(folder, f"{name}.xml")
        if xml is None:
            raise UserError(f"part: needs names of images, got {name!r}")
        annotation = _annotation(xml)
        objects = [
            found
            for found in annotation.findall("object")
            if (found.findtext("name") or "").strip() in classes
            or (found.findtext("name") or "").strip() not in CLASSES
        ]
        corners = np.array(
            [
                [_number(found.find("bndbox"), tag) for tag in ("ymin", "xmin", "ymax", "xmax")]
                for found in objects
            ],
            np.float64,
        ).reshape(-1, 4)
        difficult = np.array([_number(found, "difficult") == 1 for found in objects], bool)
        size = tuple(_number(annotation.find("size"), tag) for tag in ("height", "width"))
        result.append(
            AnnotatedImage(
                name,
                _image(root / "JPEGImages", name, annotation.findtext("filename")),
                corners - (1, 1, 0, 0),
                np.array(
                    [classes.get((found.findtext("name") or "").strip(), -1) for found in objects], np.int32
                ),
                difficult,
                extras={"difficult": difficult},
                size=tuple(map(int, size)) if all(0 < side < 1e6 for side in size) else None,
            )
        )
    check_present("root", result, root / "JPEGImages")
    return AnnotatedSource(
        result,
        categories,
        image_size=image_size,
        max_objects=max_objects,
        aspects=aspects,
        surplus=surplus,
        what=f"{name_text(root.name)} {part or ''}".strip(),
    )


def _image(folder: pathlib.Path, name: str, filename: str | None) -> pathlib.Path:
    """The image of an annotation: the file that it names, else the one of its own name."""
    named = None if filename is None else inside(folder, filename.strip())
    if named is not None and named.suffix.lower() in SUFFIXES and named.is_file():
        return named
    return folder / f"{name}.jpg"
