"""Measures a method against its own baselines over seeds: `python -m experiments.reproduce METHOD [--study NAME]`.

A method plugs in by a table `STUDIES` of `Study` in `experiments/studies/<slug>.py`. Every run's result stays in the work
directory, so that an interrupted comparison resumes; the differences are paired by seed and given with a 95 % interval.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import itertools
import json
import pathlib
import sys
import time
from collections.abc import Generator, Iterable, Mapping

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from rich.console import Console
from rich.markdown import Markdown

from experiments import configs
from experiments.study import Study
from jaxface import training
from jaxface.cli import console
from jaxface.cli.console import use_compilation_cache
from jaxface.errors import UserError
from jaxface.paths import local_path
from jaxface.training import figures
from jaxface.training.stages import Stages

SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Effect:
    """Difference of an arm, the method unless named, to a baseline under one condition; positive favors the arm."""

    condition: str
    baseline: str
    mean: float
    low: float
    high: float
    arm: str = ""

    @property
    def verdict(self) -> str:
        """better, worse or inconclusive at the 95 % level."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "inconclusive"


def interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences with Student's interval.

        mean ± t_{(1 + level)/2, n-1} · s / √n,   s with n - 1

    Args:
      values: [n] float, n ≥ 2.
      level: confidence level in (0, 1).

    Returns:
      (mean, low, high).

    Raises:
      ValueError: fewer than two values.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"values: needs at least two, got shape {values.shape}")
    mean = float(values.mean())
    half = scipy.stats.t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return mean, mean - float(half), mean + float(half)


def effects(study: Study, scores: Mapping[str, Mapping[str, np.ndarray]]) -> list[Effect]:
    """Every difference between the method and another arm, and then of the others to the study's baseline if it names one.

    `scores[condition][arm]` is [seeds], paired by position.
    """
    sign = 1.0 if study.larger_is_better else -1.0
    pairs = [("", arm) for arm in study.arms if arm != study.method]
    if study.baseline is not None:
        others = (arm for arm in study.arms if arm not in (study.method, study.baseline))
        pairs += [(arm, study.baseline) for arm in others]
    return [
        Effect(
            condition, second, *interval(sign * (by_arm[first or study.method] - by_arm[second])), arm=first
        )
        for condition, by_arm in scores.items()
        for first, second in pairs
    ]


def sharing(
    stages: Stages, count: int, done: list[training.Outcome], folder: pathlib.Path | None = None
) -> Stages:
    """The stages of a run, of which the first `count` stand in for themselves once they are `done`.

    Args:
      stages: as a method builds them.
      count: how many may be shared.
      done: outcomes of those that ran; filled by the first run.
      folder: where outcomes are kept, and looked for; None keeps them in `done` alone.
    """
    source, outcome = iter(stages), None
    for index in itertools.count():
        try:
            stage = source.send(outcome) if isinstance(source, Generator) else next(source)
        except StopIteration:
            return
        keeps = folder is not None and index < count and stage.compile_init  # files are where they were read
        kept = folder / f"{stage.name}.msgpack" if keeps else None
        if len(done) == index and kept is not None:
            done += _read_outcome(kept, stage, done)
        if index < len(done):
            saved = done[index]
            stage = training.Stage(
                stage.name,
                init=lambda rng, previous, saved=saved: saved.state,
                evaluate=lambda state, saved=saved: saved.metrics,
                compile_init=False,
            )
        outcome = yield stage
        if len(done) == index < count:
            done.append(outcome)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                record = {"metrics": outcome.metrics, "state": _without_keys(outcome.state)}
                training.write_atomically(kept, flax.serialization.to_bytes(record))


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(state):
    """Random keys as their integers; the rest as it is."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _read_outcome(path: pathlib.Path, stage: training.Stage, before: list) -> list[training.Outcome]:
    """What a stage left in a file; nothing where there is none, or one of another network."""
    shapes = jax.eval_shape(stage.init, jax.random.key(0), before[-1].state if before else None)
    plain = jax.eval_shape(_without_keys, shapes)
    try:
        record = flax.serialization.msgpack_restore(path.read_bytes())
        state = flax.serialization.from_state_dict(plain, record["state"])
    except (OSError, ValueError, KeyError):
        return []
    found, wanted = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (state, plain))
    if found != wanted:
        return []
    state = jax.tree.map(
        lambda x, a: jax.random.wrap_key_data(x) if _is_key(a) else jnp.asarray(x), state, shapes
    )
    return [training.Outcome(stage.name, state, record["metrics"])]


def run_once(
    method: str,
    config,
    path: pathlib.Path,
    *,
    beside: Iterable[pathlib.Path] = (),
    shared: int = 0,
    done: list[training.Outcome] | None = None,
    kept: pathlib.Path | None = None,
) -> dict[str, float]:
    """Metrics of one run; read from `path`, or a file `beside` it, where it was made before with the same configuration.

    With `shared`, its first stages are taken from `done`, or the folder `kept`, where they are, and added to both otherwise.
    """
    written = configs.to_dict(method, config, configs.Run())
    written = json.loads(json.dumps(written))
    for earlier in (path, *beside):
        with contextlib.suppress(OSError, ValueError, KeyError):
            saved = json.loads(earlier.read_text())
            if saved["config"] == written:
                return saved["metrics"]
    started = time.monotonic()
    stages = sharing(configs.build(method, config), shared, [] if done is None else done, kept)
    outcome = training.run(stages, seed=config.seed, cadence=training.Cadence())
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"metrics": outcome.metrics, "seconds": round(time.monotonic() - started, 1), "config": written}
    training.write_atomically(path, json.dumps(record, indent=1) + "\n")
    return outcome.metrics


def _folder_name(condition: str) -> str:
    return condition.replace("%", "").replace(" ", "-") or "all"


def measure(method: str, name: str, study: Study, seeds: int, workdir: pathlib.Path, say) -> dict:
    """All runs of a study: `scores[condition][arm]` as lists by seed."""
    if len({_folder_name(condition) for condition in study.conditions}) < len(study.conditions):
        raise ValueError(f"conditions: need different folders, got {', '.join(map(repr, study.conditions))}")
    scores = {c: {a: [] for a in study.arms} for c in study.conditions}
    total = seeds * len(study.conditions) * len(study.arms)
    done = 0
    for seed in range(1, seeds + 1):  # seed 0 is the one that recipes are tuned on
        for condition, changes in study.conditions.items():
            first_stages: list[training.Outcome] = []
            runs: list[tuple] = []  # (configuration, metrics)
            kept = None
            if study.shared_as is not None:
                common = dataclasses.replace(study.base, **changes, seed=seed, data_seed=seed)
                written = json.dumps(configs.to_dict(method, common, configs.Run()), sort_keys=True)
                digest = hashlib.sha256(written.encode()).hexdigest()[:16]
                kept = workdir / "shared" / f"{study.shared_as}-{digest}"
            for arm, overrides in study.arms.items():
                config = dataclasses.replace(study.base, **changes, **overrides, seed=seed, data_seed=seed)
                folder = workdir / name / _folder_name(condition) / arm
                metrics = next((metrics for ran, metrics in runs if ran == config), None)
                if metrics is None:
                    metrics = run_once(
                        method,
                        config,
                        folder / f"seed-{seed}.json",
                        beside=workdir.glob(f"*/*/*/seed-{seed}.json"),  # of the other studies
                        shared=study.shared,
                        done=first_stages,
                        kept=kept,
                    )
                    runs.append((config, metrics))
                metric = study.arm_metrics.get(arm, study.metric)
                if metric not in metrics:
                    raise UserError(f"study: {name} needs {metric!r}, the run reports {sorted(metrics)}")
                scores[condition][arm].append(metrics[metric])
                done += 1
                say(f"{done}/{total}  {name} {condition} {arm} seed {seed}: {metrics[metric]:.4f}")
    return scores


def markdown(study: Study, scores: dict, rows: list[Effect], seeds: int) -> str:
    """The comparison as two tables: means with standard deviations, and paired differences with their intervals."""
    by_arm = ", that of each arm" if study.arm_metrics else ""
    lines = [f"{study.claim} ({study.metric}{by_arm}, {seeds} seeds)", ""]
    lines += ["| condition | " + " | ".join(study.arms) + " |", "|---" * (len(study.arms) + 1) + "|"]
    for condition, by_arm in scores.items():
        cells = [f"{np.mean(v):.4f} ± {np.std(v, ddof=1):.4f}" for v in by_arm.values()]
        lines.append(f"| {condition} | " + " | ".join(cells) + " |")
    of_method, of_others = ([row for row in rows if bool(row.arm) == other] for other in (False, True))
    for title, table in ((f"{study.method} minus", of_method), (f"minus {study.baseline}", of_others)):
        if table:
            lines += ["", f"| condition | {title} | difference | 95 % interval | verdict |", "|---" * 5 + "|"]
        for row in table:
            lines.append(
                f"| {row.condition} | {row.arm or row.baseline} | {row.mean:+.4f} | {row.low:+.4f} … {row.high:+.4f}"
                f" | {row.verdict} |"
            )
    return "\n".join(lines) + "\n"


def reproduce(
    method: str, name: str, study: Study, *, seeds: int, workdir: pathlib.Path, say=print
) -> list[Effect]:
    """Runs a study and leaves `<name>.md`, `.json` and `.png` in the work directory.

    Raises:
      UserError: fewer than two seeds, a work directory that cannot be made, or a metric that the runs do not report.
    """
    if seeds < 2:
        raise UserError(f"seeds: an interval needs at least 2, got {seeds}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir: cannot use {workdir}: {error.strerror}") from None
    scores = measure(method, name, study, seeds, workdir, say)
    scores = {c: {a: np.array(v) for a, v in by_arm.items()} for c, by_arm in scores.items()}
    rows = effects(study, scores)
    text = markdown(study, scores, rows, seeds)
    record = {
        "method": method,
        "study": name,
        "claim": study.claim,
        "metric": study.metric,
        **({"arm_metrics": dict(study.arm_metrics)} if study.arm_metrics else {}),
        "seeds": seeds,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "scores": {c: {a: v.tolist() for a, v in by_arm.items()} for c, by_arm in scores.items()},
        "effects": [
            {**dataclasses.asdict(row), "arm": row.arm or study.method, "verdict": row.verdict}
            for row in rows
        ],
    }
    training.write_atomically(workdir / f"{name}.json", json.dumps(record, indent=2) + "\n")
    training.write_atomically(workdir / f"{name}.md", text)
    figures.save_intervals(
        [f"{row.condition}, {row.arm} minus {row.baseline}".replace(",  minus", ", minus") for row in rows],
        np.array([row.mean for row in rows]),
        np.array([row.low for row in rows]),
        np.array([row.high for row in rows]),
        workdir / f"{name}.png",
        xlabel=f"difference with 95 % interval, {seeds} seeds",
        reference=0.0,
        title=f"{study.method}, {name}: {study.metric}",
    )
    return rows


def method_studies(method: str) -> Mapping[str, Study]:
    """The studies of a method, by name.

    Raises:
      UserError: no such method, or nothing is claimed of it.
    """
    configs.method_module(method)
    module = f"experiments.studies.{method}"
    studies = importlib.import_module(module).STUDIES if importlib.util.find_spec(module) else {}
    if not studies:
        raise UserError(f"method: {method} has no study")
    return studies


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="reproduce", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("method", help="a method; `python -m experiments.launch --list` shows all")
    parser.add_argument("--study", help="one of its studies; all unless given")
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"runs per arm and condition (default {SEEDS})"
    )
    parser.add_argument("--workdir", help="default: runs/reproduce/<method>")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    method = flags.method.replace("-", "_")
    studies = method_studies(method)
    if flags.study is not None and flags.study not in studies:
        raise UserError(f"study: needs one of {', '.join(studies)}, got {flags.study!r}")
    use_compilation_cache()
    workdir = pathlib.Path("runs/reproduce") / method
    if flags.workdir is not None:
        workdir = local_path("workdir", flags.workdir)
    for name in [flags.study] if flags.study else studies:
        reproduce(method, name, studies[name], seeds=flags.seeds, workdir=workdir)
        Console().print(Markdown((workdir / f"{name}.md").read_text()))


if __name__ == "__main__":
    main()
