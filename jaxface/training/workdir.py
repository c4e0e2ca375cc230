"""The folder of a run: claimed before anything is computed, never shared by two configurations."""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from jaxface.errors import UserError
from jaxface.paths import absolute, as_os_error, is_remote, reaching, reason_of, user_path

CONFIG = "config.json"
GIVEN_UP = "given_up.json"  # CONFIG of a run that failed and left nothing to resume from
POSITION = (
    "position/metadata"  # of a checkpoint: what it says about itself, put last where nothing is renamed
)
STAGE_NAME = r"[A-Za-z0-9_]+"


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """What is written inside goes to the work directory: a disk that is full or read-only is the user's to mend.

    Args:
      path: what is written, for the message.

    Raises:
      UserError: an OSError, or the failure of a library that reports one in its own words. Other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_failure(error)
        if reason is None:
            raise
        raise UserError(
            f"workdir: cannot write to {path}: {reason}; "
            "nothing saved is lost, and once this is fixed the same command resumes the run"
        ) from error


def _disk_failure(error: BaseException) -> str | None:
    if isinstance(error, OSError):
        return reason_of(error)
    # TensorStore writes the arrays and raises ValueError with the system's words in the middle of a long message.
    reasons = [os.strerror(number) for number in _DISK if os.strerror(number) in str(error)]
    return None if isinstance(error, UserError) else next(iter(reasons), None)


def write_atomically(path, content: str | bytes) -> None:
    """Writes a file, a text as UTF-8, so that it exists whole or not at all; `path` is a result of `user_path`."""
    if is_remote(path):  # where a file appears when it is closed
        with as_os_error():
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _differences(old, new, prefix="") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{prefix}{k}.")]
    return [] if old == new else [f"{prefix[:-1]} is {old!r} there and {new!r} here"]


def check_workdir(path: str | os.PathLike, config: dict):
    """Whether `open_workdir` would take a folder, without making it or writing to it.

    Arguments, result and refusals are those of `open_workdir`.
    """
    path = absolute(user_path("workdir", path))
    with reaching(path):
        _check_place(path)
        return _check_run(path, config)


def _check_place(path) -> None:
    """Refuses what is no folder, or none to write to; elsewhere only writing tells."""
    if is_remote(path):
        if path.exists() and not path.is_dir():
            raise UserError(f"workdir: cannot use {path}: it is not a folder")
        return
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "not writable" if existing.is_dir() else "not a folder"
        raise UserError(f"workdir: cannot use {path}: {existing} is {reason}")


def _check_run(path, config: dict):
    file = path / CONFIG
    if file.is_file():
        config = json.loads(json.dumps(config))
        differences = _differences(read_config(path), config)
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(
                f"workdir: {path} holds a run with another configuration: {'; '.join(differences[:3])}{more}"
            )
    # A process killed while it claimed the folder leaves no more than a temporary file of ours.
    elif (
        path.is_dir()
        and not (path / GIVEN_UP).is_file()
        and any(not p.name.startswith(f".{CONFIG}.") for p in path.iterdir())
    ):
        raise UserError(f"workdir: {path} is not empty and holds no run; choose another folder")
    return path


def open_workdir(path: str | os.PathLike, config: dict):
    """Makes or reopens the folder of a run.

    Args:
      path: new, empty, the folder of a run with the same configuration, or one that `give_up_workdir` let go; what the
        run that failed there wrote is removed.
      config: JSON-like; written to `config.json` in a new folder, compared with it in an old one.

    Returns:
      The absolute folder.

    Raises:
      UserError: the folder cannot be written, holds something that is no run, or holds a run with another configuration
        (the first fields that differ are named). Nothing in it has been touched then.
    """
    path = check_workdir(path, config)
    file = path / CONFIG
    try:
        with as_os_error() if is_remote(path) else contextlib.nullcontext():
            path.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                if (path / GIVEN_UP).is_file():
                    for folder in ("tensorboard", "checkpoints", "profile"):
                        _remove_folder(path / folder)
                    (path / "metrics.jsonl").unlink(missing_ok=True)
                write_atomically(file, json.dumps(config, indent=2) + "\n")
                (path / GIVEN_UP).unlink(missing_ok=True)
            elif not is_remote(path):
                tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"workdir: cannot write to {path}: {reason_of(error)}") from None
    return path


def _remove_folder(path) -> None:
    if is_remote(path):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def give_up_workdir(path) -> None:
    """Lets the folder of a failed run go, so that the corrected command may have it, unless there is a checkpoint to resume from.

    What the run wrote stays to be looked at until then. Only a run that failed gives up its folder: one that has no
    checkpoint yet may still be running.
    """
    stages = (path / "checkpoints").iterdir() if (path / "checkpoints").is_dir() else ()
    entries = (entry for stage in stages if stage.is_dir() for entry in stage.iterdir())
    if any(checkpoint_step(entry) is not None for entry in entries):
        return
    if is_remote(path):
        write_atomically(path / GIVEN_UP, (path / CONFIG).read_bytes())
        (path / CONFIG).unlink()
    else:
        os.replace(path / CONFIG, path / GIVEN_UP)


def stage_folder(workdir, number: int, name: str):
    """Where the checkpoints of a stage go: `checkpoints/<number>-<stage>`, the first stage being number 0."""
    return workdir / "checkpoints" / f"{number:02d}-{name}"


def stage_folders(workdir: str | os.PathLike) -> list:
    """The folders with the checkpoints of a run, stage after stage; what else lies beside them is not looked at.

    Raises:
      UserError: a path that `user_path` refuses; two folders of one number, such as a stage and its copy.
    """
    root = user_path("run", workdir) / "checkpoints"
    by_number: dict[int, Any] = {}
    with reaching(root):
        entries = sorted(root.iterdir()) if root.is_dir() else []
    for path in entries:
        name = re.fullmatch(rf"([0-9]+)-{STAGE_NAME}", path.name)
        if name is None or not path.is_dir():
            continue
        first = by_number.setdefault(int(name[1]), path)
        if first != path:
            raise UserError(
                f"checkpoint: {root} holds two stages of one number, {first.name} and {path.name}; move one away"
            )
    return [by_number[number] for number in sorted(by_number)]


def _description_file(folder):
    return folder.with_name(f"{folder.name}.json")


def write_description(folder, description: Mapping[str, Any]) -> None:
    """Writes beside the checkpoints of a stage, `folder`, what their state is of; `read_description` reads it back.

    Raises:
      UserError: a disk that is full or read-only.
    """
    file = _description_file(folder)
    with writing(file):
        write_atomically(file, json.dumps(description, indent=2) + "\n")


def read_descriptions(
    workdir: str | os.PathLike, *, argument: str = "run"
) -> list[tuple[Any, dict[str, Any]]]:
    """(folder of its checkpoints, description) of every stage of a run that says what its state is of, stage after stage.

    Args:
      workdir: of the run.
      argument: what errors call it.

    Raises:
      UserError: a description that is not a JSON object; or as `stage_folders`.
    """
    found = []
    for folder in stage_folders(workdir):
        file = _description_file(folder)
        try:
            description = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"{argument}: {file} cannot be read as JSON ({error})") from None
        if not isinstance(description, dict):
            raise UserError(f"{argument}: {file} needs a JSON object")
        found.append((folder, description))
    return found


def read_description(
    workdir: str | os.PathLike, *, stage: str | None = None
) -> tuple[Any, dict[str, Any]] | None:
    """The last of `read_descriptions`; None where no stage says what its state is of.

    Args:
      workdir: of the run.
      stage: name of the stage that is asked; any unless given.

    Raises:
      UserError: as `read_descriptions`.
    """
    found = read_descriptions(workdir)
    return next((each for each in reversed(found) if stage in (None, each[0].name.partition("-")[2])), None)


def checkpoint_step(path) -> int | None:
    """The step of a checkpoint in the folder of its stage; None for anything else there."""
    if not re.fullmatch(r"0|[1-9][0-9]*", path.name):
        return None
    # Elsewhere there is no renaming of what is whole: what says so is the file that is put last.
    whole = (path / POSITION).exists() if is_remote(path) else path.is_dir()
    return int(path.name) if whole else None


def read_config(path: str | os.PathLike) -> dict:
    """The configuration of the run in a folder, or in a file that a run wrote.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    path = user_path("run", path)
    file = path
    try:
        file = path if path.is_file() else path / CONFIG
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"run: {path} holds no {CONFIG}; give the work directory of a run") from None
    except (OSError, ValueError) as error:
        raise UserError(f"run: {file} cannot be read as JSON ({error})") from None
