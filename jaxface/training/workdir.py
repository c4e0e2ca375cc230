"""The folder of a run: claimed before anything is computed, never shared by two configurations."""

import json
import os
import pathlib
import tempfile

from jaxface.errors import UserError

CONFIG = "config.json"


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that it is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
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


def open_workdir(path: str | pathlib.Path, config: dict) -> pathlib.Path:
    """Makes or reopens the folder of a run.

    Args:
      path: new, empty, or the folder of a run with the same configuration.
      config: JSON-like; written to `config.json` in a new folder, compared with it in an old one.

    Returns:
      The absolute folder.

    Raises:
      UserError: the folder cannot be written, holds something that is no run, or holds a run with another configuration
        (the first fields that differ are named). Nothing in it has been touched then.
    """
    path = pathlib.Path(path).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        entries = list(path.iterdir())
    except OSError as error:
        raise UserError(f"workdir: cannot use {path}: {error.strerror}") from None
    file = path / CONFIG
    if entries and not file.is_file():
        raise UserError(f"workdir: {path} is not empty and holds no run; choose another folder")
    config = json.loads(json.dumps(config))
    if file.is_file():
        differences = _differences(read_config(path), config)
        if differences:
            more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise UserError(
                f"workdir: {path} holds a run with another configuration: {'; '.join(differences[:3])}{more}"
            )
    try:
        if file.is_file():
            tempfile.TemporaryFile(dir=path).close()
        else:
            write_atomically(file, json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"workdir: cannot write to {path}: {error.strerror}") from None
    return path


def read_config(path: str | pathlib.Path) -> dict:
    """The configuration of the run in a folder.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    file = pathlib.Path(path) / CONFIG
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"run: {path} holds no {CONFIG}; give the work directory of a run") from None
    except (OSError, ValueError) as error:
        raise UserError(f"run: {file} cannot be read as JSON ({error})") from None
