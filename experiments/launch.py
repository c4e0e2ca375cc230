"""Runs one method: `python -m experiments.launch METHOD [flags]`, `--list` for all methods."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments import methods
from jaxface.cli import console
from jaxface.errors import UserError
from jaxface.paths import run_path

if TYPE_CHECKING:  # imported where they are used: `--list` and `--help` answer without JAX
    from experiments import configs
    from jaxface import training

RESULTS = "results.json"
"""File of a work directory with the results of a run that is done."""
USAGE = "usage: python -m experiments.launch METHOD [--help | flags], or --list"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that nothing is wrong with as far as can be told before anything is compiled or written."""

    workdir: pathlib.Path
    written: dict
    parallel: Any
    stages: Any
    tracking: training.Tracking
    profile: training.ProfiledSteps | None


def prepare(method: str, config, run: configs.Run) -> Prepared:
    """Everything that can be refused is refused here, before the first compilation; writes nothing.

    Raises:
      UserError: data, batch size, work directory or configuration that cannot be used.
      KernelError: a kernel cannot do what the configuration asks for.
    """
    import jax

    from experiments import configs
    from jaxface import training
    from jaxface.checks import check_fields

    parallel = training.make_parallel(run.parallel, model_shards=run.model_shards, shard=run.shard)
    check_fields(run)
    training.check_batch_size(parallel, config.batch_size, accumulate=getattr(config, "accumulate", 1))
    workdir = pathlib.Path("runs") / method if run.workdir is None else run_path("workdir", run.workdir)
    written = configs.to_dict(method, config, run)
    tracking = training.Tracking(run.writers, run.project, f"{method} {workdir.name}", written)
    tracking.check()
    profile = None if run.profile is None else training.ProfiledSteps.parse(run.profile)
    training.check_workdir(workdir, written)
    stages = configs.build(method, config)
    if isinstance(stages, Sequence):
        if profile is not None:
            profile.check(sum(stage.steps for stage in stages))
        if stages[0].compile_init:
            # Traced for what it refuses: images that the network cannot take, prototypes that do not divide.
            first = jax.eval_shape(stages[0].init, jax.eval_shape(lambda: jax.random.key(0)), None)
            parallel.shardings(first, stages[0].sharding)
    return Prepared(workdir, written, parallel, stages, tracking, profile)


def launch(method: str, config, run: configs.Run) -> training.Outcome:
    """Runs a configured method in its work directory, from its beginning or from where it was interrupted.

    Raises:
      UserError: as `prepare`.
      Diverged: a loss became NaN or infinite.
      KernelError: as `prepare`.

    Before the first checkpoint these two let the work directory go, so that the corrected command may have it.
    """
    import jax

    from jaxface import training
    from jaxface.training.workdir import writing
    from pallas_kernels.common import KernelError

    prepared = prepare(method, config, run)
    # Claimed last, so that a mistake found by `build` can be corrected and launched again in the same folder.
    workdir = training.open_workdir(prepared.workdir, prepared.written)
    try:
        outcome = training.run(
            prepared.stages,
            seed=config.seed,
            parallel=prepared.parallel,
            cadence=run.cadence,
            workdir=workdir,
            progress=not run.quiet,
            tracking=prepared.tracking,
            profile=prepared.profile,
        )
    except (training.Diverged, KernelError):
        if jax.process_index() == 0:
            training.give_up_workdir(workdir)
        raise
    if jax.process_index() == 0:
        versions = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }
        results = {"method": method, "metrics": outcome.metrics, "best": outcome.best, **versions}
        with writing(workdir / RESULTS):
            training.write_atomically(workdir / RESULTS, json.dumps(results, indent=2) + "\n")
        if not run.quiet:
            console.show_metrics(outcome.metrics, f"{method}: {workdir}")
    return outcome


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--list"]:
        descriptions = methods.descriptions()
        width = max(map(len, descriptions))
        for name, line in descriptions.items():
            print(f"{name:<{width}}  {line}")
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\n\n{USAGE}")
        return
    if arguments[0].startswith("-"):
        raise UserError(f"method: the first argument names the method, got {arguments[0]!r}; {USAGE}")
    from experiments import configs
    from jaxface import training
    from pallas_kernels.common import KernelError

    method = arguments[0].replace("-", "_")
    config, run = configs.parse(method, arguments[1:])
    console.use_compilation_cache()
    training.start_processes(run.coordinator, run.processes, run.process)
    with training.together():
        try:
            launch(method, config, run)
        except KernelError as error:
            raise UserError(str(error)) from None


if __name__ == "__main__":
    main()
