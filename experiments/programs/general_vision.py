"""GV-B's table for backbones: what each is worth, frozen, with a tenth of the data.

python -m experiments.programs.general_vision metanet_tiny runs/intern
python -m experiments.programs.general_vision runs/intern/bundle --sets cifar10 voc2012 --root ~/gvb --fraction 0.1
python -m experiments.programs.general_vision --list

A backbone is the name of a network (random weights), a run of `intern` (all trunks of it), or a run or bundle with an embedding
network. Without --sets the tasks are drawn here; data sets of the benchmark lie in folders of their names under --root, or where
TFDS keeps them. A network that is not computed by levels has rows for classification alone.
"""

import dataclasses
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.markdown import Markdown

from experiments.recipes.experts import open_trunks
from experiments.recipes.general_vision import STAND_INS, make_head, stand_in_tasks
from jaxface import data as inputs
from jaxface import inference, models
from jaxface.checks import AtLeast, check_fields, check_number
from jaxface.cli import console
from jaxface.data.sources.dense_folders import DenseFolders
from jaxface.data.sources.gvb_sets import GVB_SETS, GvbSet, describe_sets
from jaxface.errors import UserError
from jaxface.models.staged import Features
from jaxface.training.experts import init_backbone
from jaxface.training.general_vision import FrozenBackbone, GvbSpec, GvbTask, gvb_evaluate, gvb_table


class Embedder(nn.Module):
    """A network of embeddings as a backbone without maps."""

    network: nn.Module
    level_strides: tuple[int, ...] = ()

    def features(self, image: jax.Array, *, train: bool = False) -> Features:
        """The embedding alone."""
        return {"taps": (), "pooled": self.network(image, train=train)}


def _is_network(name: str) -> bool:
    return name in models.names() or name.startswith("mlp_")


def backbones(name: str, image_size: int, seed: int) -> dict[str, FrozenBackbone]:
    """Row of the table -> backbone.

    Raises:
      UserError: no network of that name and no run or bundle there.
    """
    if _is_network(name):
        module = models.create(name, embedding=None)
        if not hasattr(module, "level_strides"):
            module = Embedder(module)
        image = jnp.zeros((1, image_size, image_size, 3))
        return {
            f"{name}, random": FrozenBackbone(
                module, init_backbone(jax.random.key(seed), image, module=module)
            )
        }
    if pathlib.Path(name).is_dir() and (rows := open_trunks(name)):
        return rows
    bundle = inference.open_recognizer(name)
    bundle.check_plain("backbone")
    variables = {k: {"network": v} for k, v in bundle.variables.items()}
    if hasattr(bundle.module, "level_strides"):
        return {name: FrozenBackbone(bundle.module, bundle.variables)}
    return {name: FrozenBackbone(Embedder(bundle.module), variables)}


def benchmark_task(entry: GvbSet, root: str, image_size: int) -> GvbTask:
    """A data set of the benchmark, from a folder of its name or from TFDS.

    Raises:
      UserError: it cannot be opened.
    """
    folder = pathlib.Path(root) / entry.name
    head = None
    if entry.task != "classification":
        classes = entry.classes

        def head(strides):
            return make_head(entry.task, classes, strides)

    if entry.route == "folder" and entry.task != "classification":
        kind = "depth" if entry.task == "depth" else "pixels"
        parts = [DenseFolders(str(folder), part, kind, image_size=image_size) for part in ("train", "test")]
        return GvbTask(entry.name, entry.task, entry.metric, *parts, entry.classes, head)
    if folder.is_dir() and entry.task == "classification":
        spec = inputs.ClassFolders(root=str(folder))
    elif entry.route == "tfds":
        spec = inputs.Tfds(name=entry.tfds, split=entry.train, test=entry.test, data_dir=root, fit="crop")
    elif entry.tfds == "voc":
        spec = inputs.Voc(root=str(folder), train=entry.train, test=entry.test)
    elif entry.tfds == "wider_face":
        spec = inputs.WiderFace(root=str(folder))
    elif entry.tfds == "coco":
        spec = inputs.Coco(
            annotations=str(folder / "train.json"), evaluation_annotations=str(folder / "val.json")
        )
    else:
        raise UserError(f"root: {folder} is no folder, and {entry.name} is not in TFDS: {entry.missing}")
    split = inputs.load(spec, image_size=image_size)
    return GvbTask(entry.name, entry.task, entry.metric, split.train, split.held_out, entry.classes, head)


@console.exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    parser = console.Arguments(prog="general_vision", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("backbones", nargs="*", help="networks, runs or bundles")
    parser.add_argument("--list", action="store_true", help="the 26 data sets of the benchmark")
    parser.add_argument("--tasks", nargs="+", default=list(STAND_INS), help="those that are drawn here")
    parser.add_argument(
        "--scenes", type=int, default=2000, help="of each of them to train on, of which a share counts"
    )
    parser.add_argument("--sets", nargs="+", default=[], help="data sets of the benchmark instead")
    parser.add_argument("--root", default=".", help="folder of these data sets")
    parser.add_argument("--fraction", type=float, default=0.1, help="share of the training images")
    parser.add_argument("--size", type=int, help="side of the images, pixels (default: 24, or 224 of --sets)")
    parser.add_argument("--steps", type=int, help="of the heads, and of the linear classifiers")
    parser.add_argument("--seed", type=int, default=0, help="of shares, heads and drawn images")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    shown = Console(width=max(Console().width, 110))
    if flags.list:
        shown.print(Markdown(describe_sets()))
        return
    if not flags.backbones:
        raise UserError("backbones: needs at least one, such as metanet_tiny; --list shows the data sets")
    for name in flags.backbones:
        if not _is_network(name) and not pathlib.Path(name).exists():
            raise UserError(f"backbones: needs networks, runs or bundles, got {name!r}")
    known = {entry.name: entry for entry in GVB_SETS}
    if unknown := sorted(set(flags.sets) - set(known)):
        raise UserError(f"sets: {unknown[0]!r} is none of the benchmark's; --list shows them")
    size = flags.size or (224 if flags.sets else 24)
    check_number("size", size, AtLeast(16))
    spec = GvbSpec() if flags.sets else GvbSpec.small()
    spec = dataclasses.replace(spec, fraction=flags.fraction, seed=flags.seed)
    if flags.steps is not None:
        spec = dataclasses.replace(
            spec, steps=flags.steps, probe=dataclasses.replace(spec.probe, steps=flags.steps)
        )
    check_fields(spec, "gvb.")
    console.use_compilation_cache()
    if flags.sets:
        tasks = [benchmark_task(known[name], flags.root, size) for name in flags.sets]
    else:
        tasks = stand_in_tasks(flags.tasks, image_size=size, seed=flags.seed, scenes=flags.scenes)
    rows = {}
    for name in flags.backbones:
        for row, backbone in backbones(name, size, flags.seed).items():
            possible = [t for t in tasks if t.head is None or backbone.module.level_strides]
            rows[row] = gvb_evaluate(backbone, possible, spec)
    print(gvb_table(rows, tasks))


if __name__ == "__main__":
    main()
