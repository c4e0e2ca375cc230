"""What a data set takes of a folder from outside: photographs, and nothing that happens to lie beside them.

Every source of files and every program that walks over photographs lists them here, so that all leave out the same: hidden
files and folders, what may not be read, and what a run wrote.
"""

import errno
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxface.data.sources.images import SUFFIXES
from jaxface.paths import as_os_error, file_size, is_remote, name_text, reason_of

_NOTE_SIZE = 1 << 20  # bytes; what runs write about themselves has some thousand
_DEPTH = 3  # runs/reproduce/<method>: no run lies deeper in the folders that are the default
# File -> keys of the JSON in it, by one set of which a folder with results is told from one with photographs.
_NOTES = {
    "config.json": ({"method", "config", "run"}, {"tool", "run"}),
    "given_up.json": ({"method", "config", "run"},),
    "results.json": ({"metrics"},),
}
_STUDY = ({"study", "claim", "effects"},)  # of <name>.json, beside <name>.md
_log = logging.getLogger("jaxface.data")


class Contents(NamedTuple):
    """What is not hidden in a folder, in no order."""

    folders: list[pathlib.Path]
    files: list[pathlib.Path]


class Subfolder(NamedTuple):
    """A folder that may hold photographs: its name as text, which no folder beside it has, and the images in it."""

    name: str
    path: pathlib.Path
    images: list[pathlib.Path]


def natural_key(name: str) -> tuple:
    """Sorts s2 before s10: runs of digits compare as numbers, and the name itself breaks ties (1, 01)."""
    runs = re.split(r"([0-9]+)", name)
    return tuple(int(run) if i % 2 else run for i, run in enumerate(runs)), name


def _in_natural_order(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    return sorted(paths, key=lambda path: natural_key(path.name))


def contents(folder: pathlib.Path) -> Contents:
    """Folders and files in a folder, links followed; raises OSError where it cannot be read."""
    if is_remote(folder):
        return _contents_elsewhere(folder)
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            try:
                if entry.is_dir():
                    folders.append(path)
                elif entry.is_file():
                    files.append(path)
            except OSError:  # a link to where one may not look: reading it as either says so
                folders.append(path)
                files.append(path)
    return Contents(folders, files)


def _contents_elsewhere(folder) -> Contents:
    folders, files = [], []
    with as_os_error():
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(folder))
        for path in folder.iterdir():
            if not path.name.startswith("."):
                # To ask a store about every image would take longer than to read them.
                is_folder = not _is_image(path) and path.is_dir()
                (folders if is_folder else files).append(path)
    return Contents(folders, files)


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def subfolders(root: pathlib.Path, *, strict: bool = False, log: bool = True) -> Iterator[Subfolder]:
    """Sub-folders that may hold photographs, in natural order.

    Left out, each with a line in the log, are folders that may not be read, and those with the results of a run.

    Args:
      root: the folder.
      strict: raise for one that may not be read, too.
      log: say what is left out.

    Raises:
      OSError: a folder cannot be read; `filename` says which.
    """
    names = set()
    for folder in _in_natural_order(contents(root).folders):
        name = name_text(folder.name)
        try:
            inside = contents(folder)
        except OSError as error:
            if strict:
                raise
            if log:
                _log.warning("left out %s: %s", name_text(folder), reason_of(error))
            continue
        if _holds_results(inside):
            if log:
                _log.warning("left out %s: it holds what a run wrote, not photographs", name_text(folder))
            continue
        while name in names:  # the text of bytes that are no UTF-8 is another folder's name
            name += "'"
        names.add(name)
        yield Subfolder(name, folder, _in_natural_order(filter(_is_image, inside.files)))


def images_by_class(root: pathlib.Path, *, strict: bool = False) -> dict[str, list[pathlib.Path]]:
    """Name of a sub-folder, as text -> its images, both in natural order; a sub-folder without any is no class.

    Arguments and exceptions are those of `subfolders`.
    """
    return {folder.name: folder.images for folder in subfolders(root, strict=strict) if folder.images}


def images_below(root: pathlib.Path, folder: str) -> Iterator[str]:
    """The images in a folder and in those below it, by their names from `root`; raises OSError where one cannot be read."""
    inside = contents(root / folder)
    for path in filter(_is_image, inside.files):
        yield f"{folder}/{path.name}"
    for below in inside.folders:
        yield from images_below(root, f"{folder}/{below.name}")


def unreadable(error: OSError, root: pathlib.Path) -> str:
    """`<folder>: <reason>`, where the folder in the way may be another than the root."""
    return f"{error.filename or root}: {reason_of(error)}"


def _holds_results(inside: Contents, depth: int = _DEPTH) -> bool:
    """Whether a folder is where a run, an evaluation or a study wrote, or holds such folders and no photographs."""
    if any(map(_is_note, inside.files)):
        return True
    if not depth or any(map(_is_image, inside.files)):
        return False
    results = False
    for folder in inside.folders:
        try:
            deeper = contents(folder)
        except OSError:
            continue
        if _holds_results(deeper, depth - 1):
            results = True
        elif any(map(_is_image, deeper.files)):
            return False
    return results


def _is_note(path: pathlib.Path) -> bool:
    """Whether a file is what a run, an evaluation or a study writes about itself."""
    kinds = _NOTES.get(
        path.name, _STUDY if path.suffix == ".json" and path.with_suffix(".md").exists() else ()
    )
    if not kinds:
        return False
    try:
        if file_size(path) > _NOTE_SIZE:
            return False
        note = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # somebody else's, and anything may be in it
        return False
    return isinstance(note, dict) and any(keys <= note.keys() for keys in kinds)
