"""Converts data sets of faces: `python -m experiments.programs.convert SOURCE TARGET [--to KIND]`.

SOURCE is a folder of images by person, an InsightFace training set (`.rec`), a TFDS data set prepared as ArrayRecord, or a
verification pack (`.bin`). TARGET is written as one of these: chosen by its ending or by --to. A pack becomes a folder of
pairs (00000-same, 00001-different, ...) and such a folder a pack. JPEG and PNG bytes pass through unchanged, other images
become PNG; an image that does not decode is left out and counted.

Interrupted and run again, the command resumes and ends with the files that one run would have written. Until it is done
everything lies in .NAME.converting beside the target, so that no half of a data set passes for a whole one.
"""

import collections
import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from rich import progress as bars
from rich.console import Console

from jaxface import data, training
from jaxface.cli import console
from jaxface.data.sources.images import decode_image
from jaxface.data.sources.listing import contents, subfolders, unreadable
from jaxface.data.sources.recordio import (
    EXACT,
    MAX_RECORD,
    CorruptRecord,
    TooLarge,
    record_files,
    record_path,
)
from jaxface.data.sources.tfds_source import class_label, open_builder
from jaxface.errors import UserError
from jaxface.paths import local_path, name_text

Kind = Literal["rec", "tfds", "folder", "bin"]
KINDS = ("rec", "tfds", "folder", "bin")
CHUNK = 8192  # images between two points to resume from; also the images of a TFDS shard
NAME, VERSION = "faces", "1.0.0"  # of the TFDS data set, as jaxface.data.faces_builder has them
_PAIR = re.compile(r"[0-9]+-(same|different)")
# What the system says of a name that a file system cannot hold, or takes for one that is there.
_NO_NAME = (errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG)
_log = logging.getLogger("jaxface.data")


class Items(Protocol):
    """Encoded images of a source; `labels` [N] in [0, len(class_names)), `files` what it was read from."""

    labels: np.ndarray
    class_names: Sequence[str]
    files: list[pathlib.Path]

    def encoded(self, index: int) -> bytes:
        """The bytes of an image; raises CorruptImage."""
        ...


class FolderItems:
    """Images by person, in natural order."""

    def __init__(self, root: pathlib.Path):
        source = data.FolderSource(root, image_size=8)
        self.labels, self.class_names, self.files = source.labels, source.class_names, source.paths

    def encoded(self, index: int) -> bytes:
        return read_image(self.files[index])


def read_image(path: pathlib.Path) -> bytes:
    """The bytes of a file; a CorruptImage where it cannot be read, or is larger than any photograph."""
    try:
        if path.stat().st_size > MAX_RECORD:
            raise data.CorruptImage(f"more than {MAX_RECORD} bytes")
        return path.read_bytes()
    except OSError as error:
        raise data.CorruptImage(f"cannot be read: {error.strerror}") from error


class RecordItems:
    """Images of an InsightFace training set; classes are named by their numbers."""

    def __init__(self, path: pathlib.Path):
        source = data.RecordIOFaces(path)
        self.labels, self.class_names, self.encoded = source.labels, source.class_names, source.encoded
        rec = record_path(path)
        self.files = [file for file in (rec, rec.with_suffix(".idx")) if file.exists()]


class TfdsItems:
    """Encoded images of a split of a TFDS data set with the features `image` and `label`."""

    def __init__(self, folder: pathlib.Path, split: str):
        import tensorflow_datasets as tfds

        builder = open_builder(str(folder.absolute()), None)
        features = dict((builder.info.features or {}).items())
        if not isinstance(features.get("image"), tfds.features.Image) or "label" not in features:
            raise UserError(
                f"source: needs features image and label; {folder} has {', '.join(sorted(features))}"
            )
        try:
            self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            self.labels = np.array(
                [int(self._records[i]["label"]) for i in range(len(self._records))], np.int32
            )
        except Exception as error:  # no such split, another file format, damaged files: as many types
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"source: cannot read {split!r} of {folder} ({reason})") from error
        top = int(self.labels.max(initial=-1))
        names = getattr(features["label"], "names", None) or [str(i) for i in range(min(top, EXACT) + 1)]
        if not len(self.labels) or self.labels.min() < 0 or top >= len(names):
            raise UserError(
                f"source: needs images with labels from 0 to {len(names) - 1} in {split!r} of {folder}"
            )
        self.class_names = list(names)
        self.files = sorted(contents(folder).files)

    def encoded(self, index: int) -> bytes:
        try:
            return bytes(self._records[index]["image"])
        except Exception as error:
            raise data.CorruptImage(" ".join(str(error).split())[:160]) from error


def kind_of(source: pathlib.Path) -> Kind:
    """What lies at a path.

    Raises:
      UserError: nothing.
    """
    if os.path.isfile(source):
        return "bin" if source.suffix == ".bin" else "rec"
    if not os.path.isdir(source):
        raise UserError(f"source: needs a folder or a file; got {source}, where there is nothing")
    if _tfds_folder(source):
        return "tfds"
    if record_files(source):
        return "rec"
    try:
        if not any(_PAIR.fullmatch(folder.name) for folder in contents(source).folders):
            return "folder"
        photographs = (folder for folder in subfolders(source, log=False) if folder.images)
        return "bin" if all(_PAIR.fullmatch(folder.name) for folder in photographs) else "folder"
    except OSError as error:
        raise UserError(f"source: cannot read {unreadable(error, source)}") from error


def _tfds_folder(source: pathlib.Path) -> pathlib.Path | None:
    for folder in (source, source / VERSION, source / NAME / VERSION):
        if os.path.isfile(folder / "dataset_info.json"):
            return folder
    return None


def open_items(source: pathlib.Path, kind: Kind, *, split: str = "train") -> Items:
    """The images of a source that is no pack.

    Raises:
      UserError: it cannot be read.
    """
    if kind == "tfds":
        return TfdsItems(_tfds_folder(source), split)
    return RecordItems(source) if kind == "rec" else FolderItems(source)


def passable(encoded: bytes) -> tuple[bytes, str]:
    """(JPEG or PNG bytes, ending of a file name): the given ones where they are such an image already.

    Raises:
      CorruptImage: they do not decode.
    """
    pixels = decode_image(encoded)
    if encoded[:2] == b"\xff\xd8":
        return encoded, "jpg"
    return (encoded if encoded[:4] == b"\x89PNG" else data.encode_image(pixels)), "png"


def _reason(error: data.CorruptImage) -> str:
    if isinstance(error, TooLarge):
        return "images too large for a record"
    return "damaged records" if isinstance(error, CorruptRecord) else "images that do not decode"


def fingerprint(items: Items) -> str:
    """Changes with the files of a source, their sizes, times and classes."""
    digest = hashlib.sha256(json.dumps([str(name) for name in items.class_names]).encode())
    digest.update(np.ascontiguousarray(items.labels, np.int32).tobytes())
    for path in items.files:
        digest.update(os.fsencode(path.absolute()))
        try:
            status = path.stat()
            digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError as error:
            digest.update(f"\0{error.strerror}\n".encode())
    return digest.hexdigest()


class Target(Protocol):
    """Where images go. What was written since the last `commit` may be lost or written again."""

    final: pathlib.Path

    def order(self, labels: np.ndarray) -> np.ndarray:
        """[N] the order in which it wants the images."""
        ...

    def begin(self, chunk: int, state: dict | None) -> None:
        """Goes on after what `commit` gave; None at the beginning."""
        ...

    def write(self, position: int, label: int, encoded: bytes, ending: str) -> None: ...

    def commit(self) -> dict:
        """Brings everything to disk; returns the state for JSON."""
        ...

    def finish(self) -> None:
        """Gives the data set its name; may be called again where it was interrupted."""
        ...


def _sync(path: pathlib.Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RecTarget:
    """An InsightFace training set; without identity records where its keys would not be exact."""

    def __init__(self, final: pathlib.Path, work: pathlib.Path, items: Items):
        self.final = final
        if len(items.class_names) > EXACT:
            raise UserError(f"source: a .rec holds {EXACT} classes, got {len(items.class_names)}")
        self._identities = len(items.labels) + len(items.class_names) + 1 < EXACT

    def order(self, labels: np.ndarray) -> np.ndarray:
        return np.argsort(labels, kind="stable")

    def begin(self, chunk: int, state: dict | None) -> None:
        self._writer = data.RecordWriter(self.final, identities=self._identities, resume=state)

    def write(self, position: int, label: int, encoded: bytes, ending: str) -> None:
        self._writer.write(label, encoded)

    def commit(self) -> dict:
        return self._writer.checkpoint()

    def finish(self) -> None:
        self._writer.close()


class FolderTarget:
    """Images by class: <final>/<class>/<position in the source>.jpg or .png.

    Where a name of a class cannot be that of a folder, all folders are named class-0000000 and so on, and a line in the log
    says so.
    """

    def __init__(self, final: pathlib.Path, work: pathlib.Path, items: Items):
        self.final, self._root = final, work / "data"
        self._names = [str(name) for name in items.class_names]

    def order(self, labels: np.ndarray) -> np.ndarray:
        return np.arange(len(labels))

    def begin(self, chunk: int, state: dict | None) -> None:
        if state is None:
            self._numbered = not self._make_folders(self._names)
        else:
            self._numbered = state["numbered"]
        if self._numbered:
            self._names = [f"class-{k:07d}" for k in range(len(self._names))]
        if state is None and self._numbered:
            self._make_folders(self._names)

    def _make_folders(self, names: list[str]) -> bool:
        """Makes the folders of all classes, or none where a name is impossible: before the first image, not in the midst."""
        if self._root.exists():
            shutil.rmtree(self._root)
        self._root.mkdir()
        pairs = all(map(_PAIR.fullmatch, names))  # would be taken for those of a verification pack
        for name in names:
            # Names come from outside: they may not lead out of the folder, nor be hidden in it.
            impossible = pairs or not re.fullmatch(r"[^./\0\n][^/\0\n]*", name)
            try:
                if not impossible:
                    (self._root / name).mkdir()
            except OSError as error:
                if error.errno not in _NO_NAME:
                    raise
                impossible = True
            if impossible:
                _log.warning(
                    "%r cannot be the name of a folder here: classes are named class-0000000 and so on",
                    name_text(name[:80]),
                )
                return False
        return True

    def write(self, position: int, label: int, encoded: bytes, ending: str) -> None:
        (self._root / self._names[label] / f"{position:08d}.{ending}").write_bytes(encoded)

    def commit(self) -> dict:
        os.sync()
        return {"numbered": self._numbered}

    def finish(self) -> None:
        for folder in self._root.iterdir():
            with contextlib.suppress(OSError):  # it has images
                folder.rmdir()
        os.replace(self._root, self.final)


class TfdsTarget:
    """The data set `faces` of jaxface.data.faces_builder, one ArrayRecord file per chunk."""

    def __init__(self, final: pathlib.Path, work: pathlib.Path, items: Items):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import example_serializer

        self.final, self._root = final, work / "data"
        self._features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": class_label(items.class_names),
            }
        )
        self._serializer = example_serializer.ExampleSerializer(self._features.get_serialized_info())

    def order(self, labels: np.ndarray) -> np.ndarray:
        return np.arange(len(labels))

    def begin(self, chunk: int, state: dict | None) -> None:
        self._root.mkdir(exist_ok=True)
        self._lengths: list[int] = state["lengths"] if state else []
        self._examples: list[bytes] = []

    def write(self, position: int, label: int, encoded: bytes, ending: str) -> None:
        example = {"image": io.BytesIO(encoded), "label": label}
        message = self._serializer.get_tf_example(self._features.encode_example(example))
        # A message's map has another order in every process unless it is asked for one.
        self._examples.append(message.SerializeToString(deterministic=True))

    def commit(self) -> dict:
        from array_record.python import array_record_module

        if self._examples:
            temporary = self._root / ".writing"
            writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
            for example in self._examples:
                writer.write(example)
            writer.close()
            _sync(temporary)
            os.replace(temporary, self._root / f"{len(self._lengths):05d}")
            self._lengths.append(len(self._examples))
            self._examples = []
        return {"lengths": self._lengths}

    def finish(self) -> None:
        import tensorflow_datasets as tfds

        (self._root / ".writing").unlink(missing_ok=True)
        count = len(self._lengths)
        template = tfds.core.ShardedFileTemplate(
            data_dir=self._root,
            dataset_name=NAME,
            split="train",
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        )
        paths = [self._root / f"{NAME}-train.array_record-{k:05d}-of-{count:05d}" for k in range(count)]
        for k, path in enumerate(paths):
            if not path.exists():  # else the last attempt came that far
                os.replace(self._root / f"{k:05d}", path)
        split = tfds.core.SplitInfo(
            name="train",
            shard_lengths=self._lengths,
            num_bytes=sum(path.stat().st_size for path in paths),
            filename_template=template,
        )
        tfds.folder_dataset.write_metadata(
            data_dir=self._root,
            features=self._features,
            split_infos=[split],
            version=VERSION,
            filename_template=template,
            check_data=False,
            description="Face images with identities.",
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )
        for path in self._root.iterdir():
            _sync(path)
        self.final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._root, self.final)


TARGETS = {"rec": RecTarget, "tfds": TfdsTarget, "folder": FolderTarget}


def _work_folder(final: pathlib.Path) -> pathlib.Path:
    return final.parent / f".{final.name}.converting"


@contextlib.contextmanager
def _locked(work: pathlib.Path, final: pathlib.Path) -> Iterator[None]:
    """Holds a folder while the block runs, by a lock that the system drops when the process dies; where the system has none,
    by a file beside it, which a process that is killed leaves behind."""
    try:
        import fcntl
    except ImportError:
        fcntl = None
    lock = work.with_name(f"{work.name}.lock")
    try:
        if fcntl is not None:
            handle = os.open(work, os.O_RDONLY)
        else:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError as error:
        raise UserError(
            f"target: another process is writing {final}; where none is, one was killed: delete {lock}"
        ) from error
    except OSError as error:
        raise UserError(f"target: cannot write to {final.parent}: {error.strerror}") from error
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"target: another process is writing {final}") from error
        yield
    finally:
        os.close(handle)
        if fcntl is None:
            lock.unlink()


@contextlib.contextmanager
def _working(final: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder beside a target in which it is made, held by one process at a time."""
    work = _work_folder(final)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"target: cannot write to {final.parent}: {error.strerror}") from error
    with _locked(work, final):
        try:
            yield work
        except OSError as error:
            raise UserError(
                f"target: cannot write {final}: {error.strerror}; what is done is kept"
            ) from error


def convert(
    items: Items, final: pathlib.Path, kind: Kind, *, chunk: int = CHUNK, quiet: bool = True
) -> dict[str, int]:
    """Writes the images of a source as another data set, or resumes an interrupted conversion.

    Args:
      items: the source.
      final: the `.rec`, or the folder to come.
      kind: of the target: rec, tfds or folder.
      chunk: images between two points to resume from.
      quiet: no progress bar.

    Returns:
      reason -> images left out.

    Raises:
      UserError: the target cannot hold the names of the classes, exists, cannot be written, or was begun from another
        source; no image decodes.
    """
    target = TARGETS[kind](final, _work_folder(final), items)  # which refuses what it cannot hold
    with _working(final) as work:
        manifest = work / "manifest.json"
        begun = json.loads(manifest.read_text()) if manifest.exists() else None
        same = {"source": fingerprint(items), "kind": kind, "chunk": chunk}
        if begun and any(begun[key] != value for key, value in same.items()):
            raise UserError(
                f"target: {work} was begun from another source; remove it, or choose another target"
            )
        if final.exists() and not (begun and begun["finishing"]):
            if not begun:
                work.rmdir()
            raise UserError(f"target: needs a path where nothing is; {final} exists already")
        if not begun:  # written now, so that nobody resumes here with another source
            begun = {**same, "done": 0, "left_out": {}, "state": None, "finishing": False}
            training.write_atomically(manifest, json.dumps(begun))
        left_out = collections.Counter(begun["left_out"])
        if not final.exists():
            order = target.order(items.labels)
            target.begin(chunk, begun["state"])
            with _bar(quiet) as bar:
                task = bar.add_task("convert", total=len(order), completed=begun["done"])
                for start in range(begun["done"], len(order), chunk):
                    rows = order[start : start + chunk].tolist()
                    for row in rows:
                        try:
                            target.write(row, int(items.labels[row]), *passable(items.encoded(row)))
                        except data.CorruptImage as error:
                            left_out[_reason(error)] += 1
                        bar.advance(task)
                    begun |= {"done": start + len(rows), "left_out": dict(left_out), "state": target.commit()}
                    training.write_atomically(manifest, json.dumps(begun))
            if left_out.total() == len(order):
                shutil.rmtree(work)
                raise UserError(f"source: none of the {len(order)} images decodes")
            training.write_atomically(manifest, json.dumps(begun | {"finishing": True}))
            target.finish()
        shutil.rmtree(work)
    return dict(left_out)


def _bar(quiet: bool) -> bars.Progress:
    console = Console(stderr=True)
    columns = [*bars.Progress.get_default_columns(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn()]
    return bars.Progress(*columns, console=console, disable=quiet or not console.is_terminal)


def pack_to_folder(source: pathlib.Path, final: pathlib.Path) -> dict[str, int]:
    """Writes the pairs of a pack as folders 00000-same/0.jpg, 00000-same/1.jpg, 00001-different/...

    Returns:
      reason -> pairs left out.
    """
    images, same = data.read_bin(source)
    left_out = collections.Counter()
    if os.path.lexists(final):
        raise UserError(f"target: needs a path where nothing is; {final} exists already")
    with _working(final) as work:
        for path in work.iterdir():  # a pack takes seconds: from the beginning
            shutil.rmtree(path)
        for pair, genuine in enumerate(same.tolist()):
            folder = work / "data" / f"{pair:05d}-{'same' if genuine else 'different'}"
            try:
                files = [passable(image) for image in images[2 * pair : 2 * pair + 2]]
            except data.CorruptImage as error:
                left_out[_reason(error)] += 1
                continue
            folder.mkdir(parents=True)
            for number, (encoded, ending) in enumerate(files):
                (folder / f"{number}.{ending}").write_bytes(encoded)
        if left_out.total() == len(same):
            raise UserError(f"source: none of the {len(same)} pairs of {source} can be read")
        os.sync()
        os.replace(work / "data", final)
        shutil.rmtree(work)
    return dict(left_out)


def folder_to_pack(source: pathlib.Path, final: pathlib.Path) -> dict[str, int]:
    """The inverse of `pack_to_folder`; pairs in the natural order of their folders."""
    if os.path.lexists(final):
        raise UserError(f"target: needs a path where nothing is; {final} exists already")
    images, same, left_out = [], [], collections.Counter()
    folders = [folder for folder in subfolders(source) if _PAIR.fullmatch(folder.name)]
    for folder in folders:
        if len(folder.images) != 2:
            raise UserError(f"source: needs two images for a pair; got {len(folder.images)} in {folder.path}")
        try:
            encoded = [passable(read_image(path))[0] for path in folder.images]
        except data.CorruptImage as error:
            left_out[_reason(error)] += 1
            continue
        images += encoded
        same.append(folder.name.endswith("same"))
    if not same:
        raise UserError(f"source: none of the {len(folders)} pairs of {source} can be read")
    if min(sum(same), len(same) - sum(same)) < 2:  # which nobody could evaluate on
        raise UserError(
            f"source: a pack needs two pairs of one person and two of different people; {source} has {sum(same)} and "
            f"{len(same) - sum(same)} that can be read"
        )
    data.write_bin(final, images, same)
    return dict(left_out)


def _target_kind(source: Kind, target: pathlib.Path, to: str | None) -> Kind:
    if to not in (None, *KINDS):
        raise UserError(f"to: needs one of {', '.join(KINDS)}; got {to!r}")
    by_name = {".rec": "rec", ".bin": "bin"}.get(target.suffix)
    if to is None and by_name is None and source == "bin":
        to = "folder"
    kind = to or by_name
    if kind is None:
        raise UserError(f"to: needs tfds or folder, where TARGET does not end in .rec or .bin; got {target}")
    if (source == "bin") != (kind == "bin") and (source, kind) != ("bin", "folder"):
        raise UserError(f"to: a verification pack has pairs and no people; {source} cannot become {kind}")
    if kind in ("rec", "bin") and by_name != kind:
        raise UserError(f"target: needs the ending .{kind}; got {target}")
    return kind


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="convert", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", help="folder by person, .rec, TFDS data set or .bin")
    parser.add_argument("target", help="a .rec or .bin, or a folder that does not exist")
    parser.add_argument("--to", help=f"one of {', '.join(KINDS)}, where the ending of TARGET does not say it")
    parser.add_argument("--split", default="train", help="of a TFDS source")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    source, target = local_path("source", flags.source), local_path("target", flags.target).absolute()
    source_kind = kind_of(source)
    kind = _target_kind(source_kind, target, flags.to)
    if kind == "bin":
        if source.is_file():
            raise UserError(f"target: {source} is a pack already")
        left_out = folder_to_pack(source, target)
    elif source_kind == "bin":
        if source.is_dir():
            raise UserError(f"target: needs the ending .bin for a folder of pairs; got {target}")
        left_out = pack_to_folder(source, target)
    else:
        items = open_items(source, source_kind, split=flags.split)
        final = target / NAME / VERSION if kind == "tfds" else target
        left_out = convert(items, final, kind, quiet=flags.quiet)
    if left_out:
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        sys.stderr.write(f"left out: {listed}\n")
    if not flags.quiet:
        console.say(f"{source} -> {target}")


if __name__ == "__main__":
    main()
