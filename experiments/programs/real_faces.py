"""From rendered faces to photographs: `python -m experiments.programs.real_faces --run RUN --faces DIR`.

A network that has only seen rendered faces is verified on real people as it stands, and less the mean direction of the
photographs of other people (`centered`, which needs no label), then fine-tuned on half of the people and
verified on the other half, then the halves are swapped. A network that starts from nothing learns the same photographs in as
many steps: what the rendered faces were worth. Every number is over all pairs of the half that was not trained on; with several
splits into halves there is a 95 % interval of the difference, paired by split.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np

from experiments import configs
from experiments.launch import launch
from experiments.reproduce import interval
from jaxface import data, inference, metrics, training
from jaxface.checks import AtLeast, check_number
from jaxface.cli import console
from jaxface.cli.console import show_metrics, use_compilation_cache
from jaxface.paths import local_path

STEPS = 150  # of fine-tuning
REPORTED = ("verification/accuracy", "verification/auc", "verification/eer", "verification/tar@1e-2")
TUNED, SCRATCH = "fine-tuned", "from scratch"
ROWS = ("pixels", "pixels, centered", "rendered only", "rendered only, centered", TUNED, SCRATCH)


def fine_tuning(
    config, run: str | pathlib.Path | None, faces: data.Folder, photographs: int, steps: int = STEPS
):
    """The configuration of a run, changed to go on with photographs: so many steps of its own optimizer, stronger augmentation.

    A batch holds 32 images, or as many as `photographs` can fill and the devices can share. Without a run the network starts from
    nothing, under the same optimizer and in as many steps.
    """
    devices = jax.device_count()
    return dataclasses.replace(
        config,
        data=faces,
        init_from=None if run is None else str(run),
        augment=data.Augment(flip=0.5, crop=0.5, color=0.5),
        accumulate=1,
        batch_size=max(min(32, photographs) // devices, 1) * devices,
        steps=steps,
    )


def pixel_baseline(source: data.Source) -> np.ndarray:
    """Embeddings that are the images themselves, each with zero mean: what no learning gives."""
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32).mean(axis=-1)
    images = images.reshape(len(images), -1)
    return images - images.mean(axis=1, keepdims=True)


def centered(embeddings: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Directions of embeddings [N, D] less the mean direction of `others` [M, D]: what all photographs share says nothing on who
    is on them, and a network that has never seen one puts them all into one corner of the sphere. No label is used."""
    embeddings, others = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(embeddings), np.asarray(others))
    )
    return embeddings - others.mean(axis=0)


class Comparison(NamedTuple):
    """What `real_faces` measured.

    Attributes:
      rows: for each of ROWS, the mean of every metric over splits and halves.
      gains: for each metric (mean, low, high) of fine-tuned minus from scratch, paired by split; empty for one split.
    """

    rows: dict[str, dict[str, float]]
    gains: dict[str, tuple[float, float, float]]


def real_faces(
    run: str | pathlib.Path,
    faces: data.Folder,
    workdir: pathlib.Path,
    *,
    splits: int = 1,
    steps: int = STEPS,
    quiet: bool = False,
) -> Comparison:
    """Verification by pixels, by the network as it was rendered-trained, fine-tuned, and trained on the photographs alone."""
    bundle = inference.open_recognizer(run)
    _, config, _ = configs.from_dict(training.read_config(run))
    scores: dict[str, list[list[dict[str, float]]]] = {name: [] for name in ROWS}
    for split in range(splits):
        seed = config.data_seed + split
        for rows in scores.values():
            rows.append([])
        for swap in (False, True):
            half = dataclasses.replace(faces, held_out=0.5, swap=swap)
            seen, unseen, *_ = data.load(half, image_size=config.image_size, seed=seed)

            def score(name, embeddings, labels=unseen.labels):
                scores[name][-1].append(metrics.verify(embeddings, labels, pairs="all"))

            embed = functools.partial(bundle.embed_source, flip=True)
            for name, embeddings in (("pixels", pixel_baseline), ("rendered only", embed)):
                score(name, embeddings(unseen))
                score(f"{name}, centered", centered(embeddings(unseen), embeddings(seen)))
            for name, start in ((TUNED, run), (SCRATCH, None)):
                plan = fine_tuning(config, start, half, len(seen), steps)
                plan = dataclasses.replace(plan, data_seed=seed)
                place = workdir / f"split-{split}-half-{int(swap)}-{name.replace(' ', '-')}"
                state = launch("sface", plan, configs.Run(workdir=str(place), quiet=quiet)).state
                params = state.averaged_params["backbone"]
                score(name, training.embed_source(bundle.module, params, state.extra, unseen))
    # Few people have too few impostor pairs for a small false accept rate.
    reported = [
        key
        for key in REPORTED
        if all(key in half for rows in scores.values() for halves in rows for half in halves)
    ]
    # [splits] means over the two halves.
    means = {
        name: {
            key: np.array([np.mean([half[key] for half in halves]) for halves in rows]) for key in reported
        }
        for name, rows in scores.items()
    }
    gains = {key: interval(means[TUNED][key] - means[SCRATCH][key]) for key in reported if splits > 1}
    return Comparison(
        {name: {key: float(values.mean()) for key, values in row.items()} for name, row in means.items()},
        gains,
    )


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="real_faces", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="work directory of a run on rendered faces")
    parser.add_argument("--faces", required=True, help="folder of photographs, one sub-folder per person")
    parser.add_argument("--workdir", default="runs/real_faces", help="where the fine-tuning goes")
    parser.add_argument(
        "--splits", type=int, default=1, help="splits of the people into halves; an interval needs two"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of fine-tuning, and from scratch")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    use_compilation_cache()
    run, workdir = local_path("run", options.run), local_path("workdir", options.workdir)
    faces = data.Folder(root=str(local_path("faces", options.faces)))
    check_number("splits", options.splits, AtLeast(1))
    check_number("steps", options.steps, AtLeast(1))
    comparison = real_faces(run, faces, workdir, splits=options.splits, steps=options.steps)
    written = {"splits": options.splits, "steps": options.steps, **comparison._asdict()}
    training.write_atomically(workdir / "real_faces.json", json.dumps(written, indent=2) + "\n")
    for name, row in comparison.rows.items():
        show_metrics(row, name)
    for key, (mean, low, high) in comparison.gains.items():
        console.say(f"{TUNED} minus {SCRATCH}, {key}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    main()
