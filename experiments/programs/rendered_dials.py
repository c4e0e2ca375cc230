"""What each dial of rendered people is worth on photographs: `python -m experiments.programs.rendered_dials --faces DIR`.

The preset `sface --preset photographs`, short, is trained with all its dials, with none of them, and with all but one, and
verified on photographs, which no network has learned from: all pairs of all people, without their mean direction too
(`centered`). The runs with all dials are repeated under other seeds; their spread is what a difference has to exceed. Runs stand
in the work directory and are not trained again.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import numpy as np

from experiments import configs
from experiments.launch import launch
from experiments.methods import sface
from experiments.programs.real_faces import pixel_baseline
from jaxface import data, inference, metrics, training
from jaxface.checks import AtLeast, check_number
from jaxface.cli import console
from jaxface.cli.console import show_metrics, use_compilation_cache
from jaxface.paths import local_path

PHOTOGRAPHED, REST = data.Variation.photographed(), data.Variation()
DIALS = (
    "features", "skin", "hair", "beard", "glasses", "restyle", "mouth", "clothes", "photographs", "exposure", "vignette",
    "response", "contrast", "gray",
)  # fmt: skip
"""The dials that are at rest in `Variation()`."""
REPORTED = ("verification/auc", "verification/eer")


def at_rest(*dials: str) -> data.Variation:
    """The people of the preset with these dials at rest."""
    return dataclasses.replace(PHOTOGRAPHED, **{dial: getattr(REST, dial) for dial in dials})


def arms(seeds: int) -> dict[str, tuple[data.Variation, int]]:
    """Name -> people and seed: all dials under each seed, none, and all but one."""
    return {
        **{f"all, seed {seed}": (PHOTOGRAPHED, seed) for seed in range(seeds)},
        "none": (at_rest(*DIALS), 0),
        **{f"without {dial}": (at_rest(dial), 0) for dial in DIALS},
    }


def verified(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The reported metrics over all pairs, and less the mean direction of the photographs."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    plain = metrics.verify(unit, labels, pairs="all")
    center = metrics.verify(unit - unit.mean(axis=0), labels, pairs="all")
    return {key: plain[key] for key in REPORTED} | {f"{key}, centered": center[key] for key in REPORTED}


def rendered_dials(
    faces: data.Folder, workdir: pathlib.Path, *, steps: int, people: int, seeds: int
) -> dict[str, dict[str, float]]:
    """Metrics on photographs for each arm of `arms`, and for pixels."""
    config = sface.Config.photographs()
    photographs = data.load_all(faces, image_size=config.image_size, seed=0)
    rows = {"pixels": verified(pixel_baseline(photographs), photographs.labels)}
    for name, (variation, seed) in arms(seeds).items():
        rendered = dataclasses.replace(
            config.data,
            identities=people,
            held_out_identities=16,
            held_out_per_identity=2,
            variation=variation,
        )
        plan = dataclasses.replace(config, data=rendered, steps=steps, seed=seed)
        run = workdir / name.replace(" ", "-").replace(",", "")
        launch("sface", plan, configs.Run(workdir=str(run), quiet=True))
        embed = functools.partial(inference.open_recognizer(run).embed_source, flip=True)
        rows[name] = verified(embed(photographs), photographs.labels)
        show_metrics(rows[name], name)
    return rows


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="rendered_dials", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--faces", required=True, help="folder of photographs, one sub-folder per person")
    parser.add_argument("--workdir", default="runs/rendered_dials", help="where the runs go")
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    parser.add_argument("--people", type=int, default=512, help="rendered people of each run, 8 images each")
    parser.add_argument("--seeds", type=int, default=3, help="runs with all dials")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    for name, least in (("steps", 1), ("people", 2), ("seeds", 1)):
        check_number(name, getattr(options, name), AtLeast(least))
    use_compilation_cache()
    workdir = local_path("workdir", options.workdir)
    faces = data.Folder(root=str(local_path("faces", options.faces)))
    sizes = {"steps": options.steps, "people": options.people, "seeds": options.seeds}
    rows = rendered_dials(faces, workdir, **sizes)
    training.write_atomically(
        workdir / "rendered_dials.json", json.dumps({**sizes, "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
