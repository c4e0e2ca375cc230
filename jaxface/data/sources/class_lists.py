"""Images of classes as people have them: lists, CUB-200-2011, Clothing1M.

    <list>                                               "train/n01440764/n01440764_190.JPEG 0" in each line: ImageNet-LT,
                                                         Places-LT, iNaturalist 2018 as long-tailed recognition passes them on

    <CUB_200_2011>/images.txt                            "1 001.Black_footed_Albatross/….jpg"
    <CUB_200_2011>/image_class_labels.txt                "1 1", classes from 1
    <CUB_200_2011>/train_test_split.txt                  "1 0", 1 for training
    <CUB_200_2011>/classes.txt                           "1 001.Black_footed_Albatross"
    <CUB_200_2011>/images/<class>/<image>

    <Clothing1M>/category_names_eng.txt                  a name in each line
    <Clothing1M>/noisy_train_key_list.txt                "images/0/30/….jpg" in each line; clean_train_, clean_val_, clean_test_
    <Clothing1M>/noisy_label_kv.txt, clean_label_kv.txt  "images/0/30/….jpg 6" in each line

Lines that say nothing are left out and counted, and so is an image that cannot be read.

Methods: law, mda, nclpp
"""

import pathlib
from collections.abc import Iterator
from typing import Literal

from jaxface.data.sources.annotated import read_lines
from jaxface.data.sources.listed_faces import check_names
from jaxface.data.sources.listed_images import Listed, need_some, told
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

MOST_CLASSES = (
    1 << 20
)  # more than any list names; a larger number is a mistake, for which nothing is allocated
ClothingPart = Literal["noisy_train", "clean_train", "clean_val", "clean_test"]


def _pairs(argument: str, path: pathlib.Path) -> Iterator[tuple[str, int | None]]:
    """(all but the last word, the last one as a number ≥ 0 or None) of each line."""
    for _, line in read_lines(argument, path):
        name, _, number = line.rpartition(" ")
        yield name.strip(), int(number) if number.isascii() and number.isdecimal() else None


def listed_classes(
    root: str, path: str, *, argument: str = "train"
) -> tuple[pathlib.Path, list[str], list[int], int]:
    """A list of "path label" lines.

    Args:
      root: where the paths start. path: the list, from `root` or of its own. argument: what a refusal calls it.

    Returns:
      (folder, names, labels, lines left out).

    Raises:
      UserError: no such file, nothing in it, a path that leaves the folder, or a class beyond `MOST_CLASSES`.
    """
    folder = local_path("root", root)
    file = folder / path
    names, labels, skipped = [], [], 0
    for name, label in _pairs(argument, file):
        if label is None or not name:
            skipped += 1
            continue
        if label >= MOST_CLASSES:
            raise UserError(
                f"{argument}: {name_text(file)} has a class {label}, needs less than {MOST_CLASSES}"
            )
        names.append(name)
        labels.append(label)
    if not names:
        raise UserError(f"{argument}: no line of {name_text(file)} is a path and a class from 0")
    check_names(argument, names, name_text(file))
    return folder, names, labels, skipped


def image_lists(root: str, train: str, test: str) -> tuple[Listed, Listed]:
    """The training and the test list of a set, whose classes are numbers.

    Raises:
      UserError: as `listed_classes`; a class without a training image.
    """
    parts = [listed_classes(root, path, argument=name) for path, name in ((train, "train"), (test, "test"))]
    classes = 1 + max(max(labels) for _, _, labels, _ in parts)
    if missing := sorted(set(range(classes)) - set(parts[0][2])):
        raise UserError(
            f"train: needs images of all {classes} classes, {train} has none of class {missing[0]}"
        )
    names = [f"class {k}" for k in range(classes)]
    made = (
        told(Listed(folder, files, labels, names, skipped=skipped), folder / path)
        for (folder, files, labels, skipped), path in zip(parts, (train, test), strict=True)
    )
    return next(made), next(made)


def cub_200(root: str, part: Literal["train", "test"]) -> Listed:
    """CUB-200-2011: 11,788 birds of 200 species, 5,994 of them to train on.

    Args:
      root: the folder CUB_200_2011, or the one that holds it. part: which.

    Raises:
      UserError: a list that is missing, or a part without an image.
    """
    folder = local_path("root", root)
    folder = folder / "CUB_200_2011" if (folder / "CUB_200_2011").is_dir() else folder
    tables, skipped = {}, 0
    for name in ("images", "image_class_labels", "train_test_split", "classes"):
        table = tables[name] = {}
        for _, line in read_lines("root", folder / f"{name}.txt"):
            number, _, value = line.partition(" ")
            table[number] = value.strip()
    species = list(tables["classes"])
    names, labels = [], []
    for number, name in tables["images"].items():
        label, split = tables["image_class_labels"].get(number), tables["train_test_split"].get(number)
        if label not in tables["classes"] or split not in ("0", "1") or not name:
            skipped += 1
        elif (split == "1") == (part == "train"):
            names.append(name)
            labels.append(species.index(label))
    need_some(names, f"images of {part}", folder / "images.txt")
    check_names("root", names, name_text(folder / "images.txt"))
    titles = list(tables["classes"].values())
    return told(Listed(folder / "images", names, labels, titles, skipped=skipped), folder / "images.txt")


def clothing1m(root: str, part: ClothingPart) -> Listed:
    """Clothing1M: a million pictures of 14 kinds of clothes with labels from the web, and some that people have labeled.

    Args:
      root: the folder. part: the list of keys; labels are noisy_label_kv.txt's for "noisy_train", else clean_label_kv.txt's.

    Raises:
      UserError: a list that is missing, or a part without an image that has a label.
    """
    folder = local_path("root", root)
    classes = [line for _, line in read_lines("root", folder / "category_names_eng.txt")]
    path = folder / f"{part}_key_list.txt"
    labels_of = dict(_pairs("root", folder / f"{part.partition('_')[0]}_label_kv.txt"))
    names, labels, skipped = [], [], 0
    for _, name in read_lines("root", path):
        label = labels_of.get(name)
        if label is None or label >= len(classes):
            skipped += 1
        else:
            names.append(name)
            labels.append(label)
    need_some(names, "images with a label", path)
    check_names("root", names, name_text(path))
    return told(Listed(folder, names, labels, classes, skipped=skipped), path)
