"""Configurations: found by the method's name, read from the command line, written beside the results and read back.

A method is a module of this package with a frozen dataclass `Config` and `build(config) -> stages`.
"""

import argparse
import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import io
import pathlib
import re
import sys
import types
from typing import Annotated, Any

import absl.logging
import cattrs
import tyro
from cattrs.preconf.json import make_converter
from cattrs.strategies import configure_tagged_union
from cattrs.v import format_exception

from jaxface import data, training
from jaxface.errors import UserError

_HERE = pathlib.Path(__file__).parent
_TOOLS = {
    "__init__", "cloak_images", "configs", "convert", "evaluate", "launch", "real_faces", "recipe", "reproduce", "studies",
    "weights",
}  # fmt: skip
DATA = {
    "rendered": data.RenderedFaces,
    "folder": data.Folder,
    "rgbd_folder": data.RgbdFolder,
    "tfds": data.Tfds,
    "recordio": data.RecordIO,
    "bin": data.Bin,
    "olivetti": data.Olivetti,
    "lfw": data.Lfw,
    "digits": data.Digits,
    "digit_halves": data.DigitHalves,
    "lfw_subset": data.LfwSubset,
    "procedural": data.Procedural,
    "procedural_images": data.ProceduralImages,
    "toned": data.TonedFaces,
    "groups": data.GroupFolders,
    "shortcut_digits": data.ShortcutDigits,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and how to run."""

    workdir: str | None = None
    """Folder for checkpoints, metrics and figures; an interrupted run goes on there. Default: runs/<method>."""
    parallel: training.Mode = "jit"
    """jit over a mesh of all devices, or pmap."""
    model_shards: int = 1
    """With jit: over how many devices the class prototypes are sharded; the others share the batch."""
    cadence: training.Cadence = training.Cadence()
    """How often to log, evaluate and save."""
    quiet: bool = False
    """No progress bar and no table."""
    coordinator: str | None = None
    """Several processes as one run: HOST:PORT of process 0. Slurm, MPI, Kubernetes and TPU pods are recognised without."""
    processes: int | None = None
    """Number of processes, with `coordinator`."""
    process: int | None = None
    """Index of this process, from 0, with `coordinator`."""


def methods() -> dict[str, str]:
    """Every method and the first line of its description, without importing any."""
    files = sorted(path for path in _HERE.glob("*.py") if path.stem not in _TOOLS)
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in files
    }


def method_module(name: str) -> types.ModuleType:
    """The module of a method; dashes and underscores are alike.

    Raises:
      UserError: no such method; names the nearest.
    """
    known, slug = methods(), name.replace("-", "_")
    if slug not in known:
        raise UserError(f"method: {name!r} is unknown{_nearest(slug, known)}; --list shows all")
    return importlib.import_module(f"{__package__}.{slug}")


def _nearest(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def presets(config_class: type) -> list[str]:
    """Names of the class methods that make whole configurations, such as `paper`."""
    return [name for name, value in vars(config_class).items() if isinstance(value, classmethod)]


def _exactly(value: Any, kind: type) -> Any:
    """`value` if it is of that kind (an integer is a float too); cattrs alone would make 3 of 3.7 and True of "no"."""
    if type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    raise TypeError(f"needs {kind.__name__}, got {value!r}")


@functools.cache
def _converter() -> cattrs.Converter:
    converter = make_converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _exactly)
    configure_tagged_union(data.AnyFaces, converter, tag_name="kind")
    return converter


class Arguments(argparse.ArgumentParser):
    """An argument parser whose refusals are one line, as those of the rest of the program."""

    def error(self, message: str):
        raise UserError(message)


def to_dict(method: str, config: Any, run: Run) -> dict:
    """What is written to `config.json`: all that the result depends on."""
    written = _converter().unstructure(run, Run)
    for name in (
        "workdir",
        "quiet",
        "coordinator",
        "processes",
        "process",
    ):  # where it runs, not what it does
        del written[name]
    return {"method": method, "config": _converter().unstructure(config, type(config)), "run": written}


def from_dict(written: dict) -> tuple[str, Any, Run]:
    """The inverse of `to_dict`: method, Config and Run.

    Raises:
      UserError: an unknown method or field, or a value of the wrong type; one line.
    """
    parts = [written, written.get("config", {}), written.get("run", {})] if isinstance(written, dict) else [0]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError("config: needs an object with a method, and objects config and run")
    method = str(written.get("method"))
    module = method_module(method)
    try:
        return method, *map(_converter().structure, parts[1:], (module.Config, Run))
    except cattrs.BaseValidationError as error:
        reasons = cattrs.transform_error(error, format_exception=_reason)
        raise UserError(f"config: {'; '.join(reasons)}") from None


def _reason(error: BaseException, kind: type | None) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing or unknown"
    return format_exception(error, kind)


def parse(method: str, arguments: list[str]) -> tuple[Any, Run]:
    """A method's Config and Run from command-line arguments.

    `--preset NAME` or `--config FILE` choose what the other flags change; `--data KIND` chooses the kind of data.

    Raises:
      UserError: an unknown flag or a value of the wrong type; one line.
      SystemExit: `--help` was asked for.
    """
    module = method_module(method)
    # These three decide which flags there are, so they are read before the others.
    first = Arguments(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--config")
    first.add_argument("--data")
    chosen, rest = first.parse_known_args(arguments)
    config, run = module.Config(), Run()
    if chosen.preset is not None:
        known = presets(module.Config)
        if chosen.preset not in known:
            raise UserError(f"preset: {method} has {', '.join(known) or 'none'}, got {chosen.preset!r}")
        config = getattr(module.Config, chosen.preset)()
    if chosen.config is not None:
        written_for, config, run = from_dict(training.read_config(chosen.config))
        if written_for != method:
            raise UserError(f"config: {chosen.config} is of method {written_for!r}, not {method!r}")
    if chosen.data is not None:
        config = dataclasses.replace(config, data=_empty_data(chosen.data))

    @dataclasses.dataclass(frozen=True)
    class Flags:
        config: Annotated[module.Config, tyro.conf.arg(name="")]
        run: Annotated[Run, tyro.conf.arg(name="")]

    flags = tyro_parse(
        Flags,
        Flags(config, run),
        rest,
        prog=f"launch {method}",
        description=f"{methods()[method.replace('-', '_')]}\n\n"
        f"--data {{{','.join(DATA)}}} chooses the data; its own flags are under 'data options'. "
        f"--preset {{{','.join(presets(module.Config))}}} starts from another configuration, "
        "--config FILE from one that a run wrote.",
    )
    return flags.config, flags.run


def _empty_data(kind: str) -> data.Faces:
    if kind not in DATA:
        raise UserError(f"data: needs one of {', '.join(DATA)}, got {kind!r}{_nearest(kind, DATA)}")
    fields = dataclasses.fields(DATA[kind])
    required = {f.name: tyro.MISSING for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    return DATA[kind](**required)


def parse_data(kind: str, arguments: list[str], *, prog: str) -> data.Faces:
    """The data named by `--data KIND --data.FIELD …`."""

    @dataclasses.dataclass(frozen=True)
    class Flags:
        data: data.AnyFaces

    return tyro_parse(Flags, Flags(_empty_data(kind)), arguments, prog=prog).data


def tyro_parse(
    flags_class: type, default: Any, arguments: list[str], *, prog: str, description: str = ""
) -> Any:
    """`tyro.cli` whose refusals are one line.

    Raises:
      UserError: an unknown flag, a missing one, or a value of the wrong type.
      SystemExit: `--help` was asked for.
    """
    said = io.StringIO()
    try:
        # Help goes to stdout as it is; complaints go to stderr in a frame, of which the text is kept.
        with contextlib.redirect_stderr(said):
            flags, unknown = tyro.cli(
                flags_class,
                default=default,
                args=arguments,
                prog=prog,
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(_complaint(said.getvalue()) or "the arguments cannot be understood") from None
    if unknown:
        flag = unknown[0].partition("=")[0]
        raise UserError(f"{flag}: no such option{_nearest(flag, _flag_names(flags))}; --help lists all")
    return flags


def _complaint(framed: str) -> str:
    """The sentence inside tyro's frame, which has a title above it and hints below."""
    lines = [re.sub(r"[─│╭╮╰╯]|-{5,}", " ", line).strip() for line in framed.splitlines()]
    text = " ".join([line for line in lines if line][1:])
    return " ".join(re.split("Argument helptext:|For full helptext", text)[0].split())


def _flag_names(value: Any, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        # `config` and `run` are the two nameless groups of the top level.
        name = (
            prefix
            if not prefix and field.name in ("config", "run")
            else f"{prefix}{field.name.replace('_', '-')}"
        )
        if dataclasses.is_dataclass(inner):
            names += _flag_names(inner, f"{name}." if name else "")
        else:
            names.append(f"--{name}")
    return names


def exit_on_user_error(main):
    """Lets a program end with one line and status 2 on a mistake of its user."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        # orbax and grain say much through absl that is no news to a user; what we have to say goes through our own logger.
        absl.logging.set_verbosity(absl.logging.ERROR)
        try:
            return main(*args, **kwargs)
        except UserError as error:
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(2) from None

    return wrapped
