"""From rendered faces to photographs: `python -m experiments.programs.real_faces --run RUN --faces DIR`.

A network that has only seen rendered faces is verified on real people as it stands, then fine-tuned on half of the people and
verified on the other half, then the halves are swapped. Every number is over all pairs of the half that was not trained on.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

from experiments import configs
from experiments.launch import launch
from jaxface import data, inference, metrics, training
from jaxface.cli import console
from jaxface.cli.console import show_metrics, use_compilation_cache
from jaxface.paths import local_path

REPORTED = ("verification/accuracy", "verification/auc", "verification/eer", "verification/tar@1e-2")


def fine_tuning(config, run: str | pathlib.Path, faces: data.Folder, photographs: int):
    """The configuration of a run, changed to go on with photographs: small steps, stronger augmentation.

    A batch holds 32 images, or as many as `photographs` can fill and the devices can share.
    """
    devices = jax.device_count()
    return dataclasses.replace(
        config,
        data=faces,
        init_from=str(run),
        augment=data.Augment(flip=0.5, crop=0.5, color=0.5),
        optimizer=training.Optimizer(learning_rate=0.02, decay_at=(0.6,), weight_decay=5e-4),
        accumulate=1,
        batch_size=max(min(32, photographs) // devices, 1) * devices,
        steps=150,
    )


def pixel_baseline(source: data.Source) -> np.ndarray:
    """Embeddings that are the images themselves, each with zero mean: what no learning gives."""
    images = np.stack([source[i]["image"] for i in range(len(source))]).astype(np.float32).mean(axis=-1)
    images = images.reshape(len(images), -1)
    return images - images.mean(axis=1, keepdims=True)


def real_faces(
    run: str | pathlib.Path, faces: data.Folder, workdir: pathlib.Path, *, quiet: bool = False
) -> dict[str, dict[str, float]]:
    """Mean over both halves of the verification metrics of pixels, the rendered-only network and the fine-tuned one."""
    bundle = inference.open_recognizer(run)
    _, config, _ = configs.from_dict(training.read_config(run))
    rows: dict[str, list[dict[str, float]]] = {"pixels": [], "rendered only": [], "fine-tuned": []}
    for swap in (False, True):
        half = dataclasses.replace(faces, held_out=0.5, swap=swap)
        seen, unseen, *_ = data.load(half, image_size=config.image_size, seed=config.data_seed)

        def score(embeddings, labels=unseen.labels):
            return metrics.verify(embeddings, labels, pairs="all")

        rows["pixels"].append(score(pixel_baseline(unseen)))
        rows["rendered only"].append(score(bundle.embed_source(unseen, flip=True)))
        tuned = launch(
            "sface",
            fine_tuning(config, run, half, len(seen)),
            configs.Run(workdir=str(workdir / f"half-{int(swap)}"), quiet=quiet),
        ).state
        rows["fine-tuned"].append(
            score(
                training.embed_source(bundle.module, tuned.averaged_params["backbone"], tuned.extra, unseen)
            )
        )
    # Few people have too few impostor pairs for a small false accept rate.
    reported = [key for key in REPORTED if all(key in half for halves in rows.values() for half in halves)]
    return {
        name: {key: float(np.mean([half[key] for half in halves])) for key in reported}
        for name, halves in rows.items()
    }


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="real_faces", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, help="work directory of a run on rendered faces")
    parser.add_argument("--faces", required=True, help="folder of photographs, one sub-folder per person")
    parser.add_argument("--workdir", default="runs/real_faces", help="where the fine-tuning goes")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    use_compilation_cache()
    run, workdir = local_path("run", options.run), local_path("workdir", options.workdir)
    faces = data.Folder(root=str(local_path("faces", options.faces)))
    table = real_faces(run, faces, workdir)
    training.write_atomically(workdir / "real_faces.json", json.dumps(table, indent=2) + "\n")
    for name, row in table.items():
        show_metrics(row, name)


if __name__ == "__main__":
    main()
