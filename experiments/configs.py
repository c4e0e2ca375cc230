"""Configurations: found by the method's name, read from the command line, written beside the results and read back.

A method is a module of `experiments.methods` with a frozen dataclass `Config` and `build(config) -> stages`.
"""

import dataclasses
import functools
import importlib
import types
from typing import Annotated, Any, get_origin

import cattrs
import tyro
from cattrs.preconf.json import make_converter
from cattrs.v import format_exception

from experiments import methods
from jaxface import training
from jaxface.checks import AtLeast, check_fields
from jaxface.cli import console
from jaxface.cli.flags import parse_flags, unset_data
from jaxface.data.specs.base import KINDS, DataSpec
from jaxface.errors import UserError
from jaxface.paths import user_path
from jaxface.registry import nearest
from jaxface.training.stages import Stages


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and how to run."""

    workdir: str | None = None
    """Folder for checkpoints, metrics and figures; an interrupted run resumes from it. Default: runs/<method>."""
    parallel: training.Mode = "jit"
    """jit over a mesh of all devices, or pmap."""
    model_shards: Annotated[int, AtLeast(1)] = 1
    """With jit: over how many devices the class prototypes are sharded; the others share the batch."""
    shard: training.Shard = "none"
    """With jit: fsdp spreads every large parameter and the optimizer's state over the devices that share the batch."""
    cadence: training.Cadence = training.Cadence()
    """How often to log, evaluate and save."""
    quiet: bool = False
    """No progress bar and no table."""
    writers: tuple[str, ...] = ()
    """Services that are told the numbers beside metrics.jsonl and TensorBoard: wandb, mlflow. Resumed runs go on in their run."""
    project: str = "jaxface"
    """With writers: the project of Weights & Biases, or the experiment of MLflow."""
    profile: str | None = None
    """FIRST:LAST, steps counted over all stages, of which a trace for TensorBoard goes to profile/ in the work directory."""
    coordinator: str | None = None
    """Several processes as one run: HOST:PORT of process 0. Slurm, MPI, Kubernetes and TPU pods are recognized without."""
    processes: Annotated[int | None, AtLeast(1)] = None
    """Number of processes, with `coordinator`."""
    process: Annotated[int | None, AtLeast(0)] = None
    """Index of this process, from 0, with `coordinator`."""


_WHERE = ("workdir", "shard", "quiet", "writers", "project", "profile", "coordinator", "processes", "process")
# Fields of Run that say where it runs and who is told, not what it does.


def method_module(name: str) -> types.ModuleType:
    """The module of a method; dashes and underscores are alike.

    Raises:
      UserError: no such method; names the nearest.
    """
    descriptions, slug = methods.descriptions(), name.replace("-", "_")
    if slug not in descriptions:
        raise UserError(f"method: {name!r} is unknown{nearest(slug, descriptions)}; --list shows all")
    return importlib.import_module(f"{methods.__name__}.{slug}")


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
    converter.register_unstructure_hook_func(
        lambda kind: kind is DataSpec,
        lambda spec: {"kind": KINDS.name_of(type(spec)), **converter.unstructure(spec, type(spec))},
    )

    def structure_data(written, _):
        if not isinstance(written, dict) or "kind" not in written:
            raise UserError(f"data: needs an object with a kind, got {written!r}")
        fields = {name: value for name, value in written.items() if name != "kind"}
        return converter.structure(fields, KINDS[str(written["kind"])])

    converter.register_structure_hook_func(lambda kind: kind is DataSpec, structure_data)
    return converter


def to_dict(method: str, config: Any, run: Run) -> dict:
    """What is written to `config.json`: all that the result depends on."""
    written = _converter().unstructure(run, Run)
    for name in _WHERE:
        del written[name]
    return {"method": method, "config": _converter().unstructure(config, type(config)), "run": written}


def from_dict(written: dict) -> tuple[str, Any, Run]:
    """The inverse of `to_dict`: method, Config and Run.

    Raises:
      UserError: an unknown method or field, or a value of the wrong type; one line.
    """
    tables = (
        [written, written.get("config", {}), written.get("run", {})] if isinstance(written, dict) else [0]
    )
    if not all(isinstance(table, dict) for table in tables):
        raise UserError("config: needs an object with a method, and objects config and run")
    method = str(written.get("method"))
    module = method_module(method)
    try:
        return method, *map(_converter().structure, tables[1:], (module.Config, Run))
    except cattrs.BaseValidationError as error:
        reasons = cattrs.transform_error(error, format_exception=_reason)
        raise UserError(f"config: {'; '.join(reasons)}") from None


def _reason(error: BaseException, kind: Any) -> str:
    kind = kind.__origin__ if get_origin(kind) is Annotated else kind
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
    first = console.Arguments(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--config")
    first.add_argument("--data")
    base, rest = first.parse_known_args(arguments)
    config, run = module.Config(), Run()
    if base.preset is not None:
        names = presets(module.Config)
        if base.preset not in names:
            raise UserError(f"preset: {method} has {', '.join(names) or 'none'}, got {base.preset!r}")
        config = getattr(module.Config, base.preset)()
    if base.config is not None:
        written_for, config, run = from_dict(training.read_config(user_path("config", base.config)))
        if written_for != method:
            raise UserError(f"config: {base.config} is of method {written_for!r}, not {method!r}")
    if base.data is not None:
        config = dataclasses.replace(config, data=unset_data(base.data))

    @dataclasses.dataclass(frozen=True)
    class Flags:
        config: Annotated[module.Config, tyro.conf.arg(name="")]
        run: Annotated[Run, tyro.conf.arg(name="")]

    flags = parse_flags(
        Flags,
        Flags(config, run),
        rest,
        prog=f"launch {method}",
        nameless=("config", "run"),
        description=f"{methods.descriptions()[method.replace('-', '_')]}\n\n"
        f"--data {{{','.join(KINDS.names())}}} chooses the data; its own flags are under 'data options'. "
        f"--preset {{{','.join(presets(module.Config))}}} starts from another configuration, "
        "--config FILE from one that a run wrote.",
    )
    return flags.config, flags.run


def build(method: str, config: Any) -> Stages:
    """The stages of a configuration.

    Raises:
      UserError: a field out of the range that its annotation declares, or what the method's `build` refuses.
    """
    check_fields(config)
    return method_module(method).build(config)
