"""Runs a method with every combination of some fields, as runs that resume, and tells them apart in one table.

    python -m experiments.sweep METHOD --grid steps=500,1000 loss=sface,arcface --workdir DIR [--seeds 0 1 2] [flags of launch]

Fields are flags of the launcher without their dashes; values are separated by commas, those of a field with several by blanks
(`--grid "anchor-sizes=13 19,27 38"`). All combinations are checked before the first run starts. Every run has a folder in DIR;
the same command resumes, and does not repeat what is finished. A run that fails is a row that says so. DIR/sweep.md and
DIR/sweep.json hold the table, best first: `--metric` names what is compared, the largest being best unless `--smallest`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxface.cli import console
from jaxface.errors import UserError
from jaxface.paths import run_path
from jaxface.registry import nearest

if TYPE_CHECKING:  # imported where they are used: `--help` answers without JAX
    from experiments import configs

USAGE = "usage: python -m experiments.sweep METHOD --grid FIELD=A,B … --workdir DIR [--seeds N …] [--metric NAME] [--smallest]"
MOST_RUNS = 10_000
_LONGEST_NAME = 120  # characters of a folder; file systems take 255 bytes
_log = logging.getLogger(__name__)

Combination = dict[str, str]  # field -> value, as the command line has them


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its combination, its folder's name, and what `launch` takes."""

    combination: Combination
    name: str
    config: Any
    run: configs.Run


def parse_grid(words: Sequence[str]) -> list[Combination]:
    """Every combination of `field=a,b` …, the last field changing fastest.

    Raises:
      UserError: a word without a field or without a value, a field or a value of it twice, or too many combinations.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        field, separator, text = word.partition("=")
        field = field.removeprefix("--").replace("_", "-")
        if not field or not separator or not all(value.strip() for value in text.split(",")):
            raise UserError(f"grid: needs FIELD=VALUE,VALUE…, got {word!r}")
        if field in values:
            raise UserError(f"grid: needs each field once, got {field} twice")
        values[field] = [value.strip() for value in text.split(",")]
        if len(set(values[field])) < len(values[field]):
            raise UserError(f"grid: needs each value of {field} once, got {text}")
    for field in ("workdir", "quiet"):
        if field in values:
            raise UserError(
                f"grid: {field} is the same for all runs, or the sweep's own; got {field}={values[field][0]}"
            )
    combinations = [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
    if len(combinations) > MOST_RUNS:
        raise UserError(f"grid: needs at most {MOST_RUNS} combinations, got {len(combinations)}")
    return combinations


def folder_name(combination: Combination) -> str:
    """A name for the folder of a run that says its combination: steps=500,loss=sface."""
    text = ",".join(f"{field}={value}" for field, value in combination.items())
    name = re.sub(r"[^\w.=,+-]", "_", text, flags=re.ASCII)
    if name != text or len(name) > _LONGEST_NAME:  # what was replaced or cut may have told two apart
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def _flags(combination: Combination, default: Any) -> list[str]:
    """The combination as flags; `default` are the method's Config and a Run, which tell switches and lists."""
    flags = []
    for field, value in combination.items():
        known = _value_at(default, field)
        if isinstance(known, bool):
            if value.lower() not in ("true", "false"):
                raise UserError(f"grid: {field} needs true or false, got {value!r}")
            head, _, last = field.rpartition(".")
            negated = last if value.lower() == "true" else f"no-{last}"
            flags.append(f"--{head}.{negated}" if head else f"--{negated}")
        else:
            flags += [f"--{field}", *(value.split() if isinstance(known, tuple) else [value])]
    return flags


def _value_at(defaults: Sequence[Any], field: str) -> Any:
    for value in defaults:
        for name in field.replace("-", "_").split("."):
            value = getattr(value, name, None)
        if value is not None:
            return value
    return None


def _parse(method: str, combination: Combination, flags: list[str]) -> tuple[Any, configs.Run]:
    """Config and Run of a combination; a refusal says which."""
    from experiments import configs

    try:  # what the other flags make of the fields tells switches and lists, unless they need the combination's
        known = configs.parse(method, flags)
    except UserError:
        known = configs.method_module(method).Config(), configs.Run()
    with _said_of(combination):
        return configs.parse(method, [*flags, *_flags(combination, known)])


@contextlib.contextmanager
def _said_of(combination: Combination) -> Iterator[None]:
    from pallas_kernels.common import KernelError

    try:
        yield
    except (UserError, KernelError) as error:
        if str(error).startswith("grid:"):
            raise
        said = " ".join(f"{field}={value}" for field, value in combination.items())
        raise UserError(f"grid: {said}: {error}") from None


def plan(method: str, combinations: Sequence[Combination], workdir, flags: list[str]) -> list[SweepRun]:
    """The runs, each checked in everything that `launch` checks before it compiles.

    Raises:
      UserError: an unknown field, a value of the wrong type or out of range, data that cannot be had …, for any of them.
    """
    from experiments import launch
    from jaxface.training.workdir import CONFIG

    if (workdir / CONFIG).is_file():
        raise UserError(f"workdir: {workdir} holds a run; choose another folder for the sweep")
    runs = []
    for combination in combinations:
        name = folder_name(combination)
        config, run = _parse(method, combination, flags)
        run = dataclasses.replace(run, workdir=str(workdir / name))
        with _said_of(combination):
            if finished(method, config, run) is None:
                launch.prepare(method, config, run)
        runs.append(SweepRun(combination, name, config, run))
    return runs


def finished(method: str, config: Any, run: configs.Run) -> dict[str, Any] | None:
    """{"metrics", "best"} of a run that is done; None for one that is not.

    Raises:
      UserError: its folder holds another run.
    """
    from experiments import configs, launch
    from jaxface import training

    path = training.check_workdir(run.workdir, configs.to_dict(method, config, run))
    try:
        results = json.loads((path / launch.RESULTS).read_text(encoding="utf-8"))
        return {"metrics": results["metrics"], "best": results["best"]}
    except (OSError, ValueError, KeyError):
        return None


def run_all(method: str, runs: Sequence[SweepRun], *, say=console.say) -> list[dict[str, Any]]:
    """Runs what is not finished; for every run {"combination", "folder", "metrics", "best"}, or "error" in the place of both."""
    from experiments import launch

    results = []
    for number, one in enumerate(runs, 1):
        result: dict[str, Any] = {"combination": one.combination, "folder": one.name}
        try:
            done = finished(method, one.config, one.run)
            say(f"run {number} of {len(runs)}: {one.name}{'' if done is None else ', finished before'}")
            if done is None:
                outcome = launch.launch(method, one.config, one.run)
                done = {"metrics": outcome.metrics, "best": outcome.best}
            result |= done
        except Exception as error:  # whatever a method, a kernel or a device raises is that run's own
            if not isinstance(error, UserError):
                _log.exception("run %s failed", one.name)
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            result["error"] = f"{kind}{(str(error).strip().splitlines() or ['no message'])[0]}"
        results.append(result)
    return results


def table(results: Sequence[dict[str, Any]], metric: str | None, *, smallest: bool = False) -> dict[str, Any]:
    """The results as rows, one for each combination without its seed, best first and failures last.

    Args:
      results: of `run_all`.
      metric: what is compared; unless given that by which the method tells checkpoints apart, or the first one.
      smallest: whether the smallest value is the best.

    Returns:
      {"metric", "smallest", "rows": [{"combination", "mean", "half_interval", "finished", "runs"}]}; `mean` is None where no run
      finished, and `half_interval`, of 95 %, where fewer than two have.

    Raises:
      UserError: a metric that the runs do not have; names the nearest.
    """
    done = [result for result in results if "metrics" in result]
    names = list(dict.fromkeys(name for result in done for name in result["metrics"]))
    if metric is None:
        candidates = [*(result["best"] for result in done), *names]
        metric = next((name for name in candidates if name in names), "metric")
    elif names and metric not in names:
        raise UserError(f"metric: needs one of {', '.join(names)}, got {metric!r}{nearest(metric, names)}")
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        fields = {name: value for name, value in result["combination"].items() if name != "seed"}
        groups.setdefault(json.dumps(fields), []).append(result)
    rows = []
    for fields, runs in groups.items():
        values = np.array([run["metrics"][metric] for run in runs if metric in run.get("metrics", {})])
        rows.append(
            {
                "combination": json.loads(fields),
                "mean": float(values.mean()) if len(values) else None,
                "half_interval": _half_interval(values) if len(values) > 1 else None,
                "finished": len(values),
                "runs": runs,
            }
        )
    sign = 1 if smallest else -1
    # A mean that is not a number goes behind those that are.
    rows.sort(key=lambda row: (row["mean"] is None, np.isnan(row["mean"] or 0), sign * (row["mean"] or 0)))
    return {"metric": metric, "smallest": smallest, "rows": rows}


def _half_interval(values: np.ndarray) -> float:
    from experiments.reproduce import interval

    mean, low, _ = interval(values)
    return float(mean - low)


def markdown(compared: dict[str, Any]) -> str:
    """`table` as Markdown."""
    fields = list(dict.fromkeys(field for row in compared["rows"] for field in row["combination"]))
    several = any(len(row["runs"]) > 1 for row in compared["rows"])
    title = compared["metric"] + (" (95 % interval)" if several else "")
    lines = [_line([*fields, title, "runs"]), _line(["---"] * (len(fields) + 2))]
    for row in compared["rows"]:
        value = "none" if row["mean"] is None else f"{row['mean']:.4f}"
        if row["half_interval"] is not None:
            value += f" ± {row['half_interval']:.4f}"
        errors = [run["error"] for run in row["runs"] if "error" in run]
        said = f"{row['finished']} of {len(row['runs'])}" if several or errors else "1"
        if errors:
            said += f" failed: {errors[0]}"
        lines.append(_line([*(row["combination"].get(field, "") for field in fields), value, said]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(console.one_line(cell).replace("|", "\\|") for cell in cells) + " |"


def sweep(
    method: str,
    combinations: Sequence[Combination],
    workdir,
    flags: list[str],
    *,
    metric: str | None = None,
    smallest: bool = False,
    say=console.say,
) -> dict[str, Any]:
    """Plans, runs and compares; writes `sweep.md` and `sweep.json` beside the runs and returns `table`.

    Raises:
      UserError: as `plan` before the first run, or as `table` after the last.
    """
    import jax

    from jaxface import training
    from jaxface.training.workdir import writing

    runs = plan(method, combinations, workdir, flags)
    results = run_all(method, runs, say=say)
    compared = table(results, metric, smallest=smallest)
    if jax.process_index() == 0:
        with writing(workdir):
            description = {"method": method, "flags": flags, **compared}
            training.write_atomically(workdir / "sweep.json", json.dumps(description, indent=2) + "\n")
            training.write_atomically(workdir / "sweep.md", markdown(compared))
    return compared


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n{USAGE}\n")
        return
    if arguments[0].startswith("-"):
        raise UserError(f"method: the first argument names the method, got {arguments[0]!r}; {USAGE}")
    parser = console.Arguments(add_help=False, allow_abbrev=False)
    parser.add_argument("--grid", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", default=[])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--metric")
    parser.add_argument("--smallest", action="store_true")
    options, flags = parser.parse_known_args(arguments[1:])
    words = options.grid
    if options.seeds:
        words = [*words, f"seed={','.join(options.seeds)}"]
    combinations = parse_grid(words)
    workdir = run_path("workdir", options.workdir)

    import jax

    from experiments import configs
    from jaxface import training

    method = arguments[0].replace("-", "_")
    configs.method_module(method)
    console.use_compilation_cache()
    _, run = _parse(method, combinations[0], flags)
    training.start_processes(run.coordinator, run.processes, run.process)
    with training.together():
        compared = sweep(
            method, combinations, workdir, flags, metric=options.metric, smallest=options.smallest
        )
        if jax.process_index() == 0:
            sys.stdout.write(f"\n{markdown(compared)}")


if __name__ == "__main__":
    main()
