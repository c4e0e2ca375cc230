"""The teacher of a distillation: a finished run, or a network trained first on the same data.

Methods: cckd, coupleface, rco, ida, acw, cloak, rbonn
"""

import dataclasses
from typing import Annotated

from experiments.configs import check_images, load_network
from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, network, recognition_stage
from jaxface import data as inputs
from jaxface import training
from jaxface.checks import AtLeast
from jaxface.errors import UserError


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """The network to learn from: a finished run, or one trained first on the same data."""

    run: str | None = None
    """Work directory of a finished run of any method with an embedding network; the other fields are not used then."""
    backbone: str = "iresnet_nano"
    """Network of the teacher."""
    embedding: Annotated[int | None, AtLeast(1)] = 128
    """Size of its embedding; None takes the pooled features, as the student's field does."""
    head: HeadSpec = HeadSpec()
    """Loss that it is trained with."""
    optimizer: training.Optimizer = training.adam(3e-3)
    """Its optimizer."""
    steps: Annotated[int, AtLeast(0)] = 1000
    """Steps that it is trained for."""


def teacher_stage(
    recipe: Recipe,
    teacher: TeacherSpec,
    split: inputs.Split,
    *,
    embedding: int | None = None,
    prototypes: bool = False,
) -> tuple[training.Stage, training.Teacher]:
    """The first stage of a distillation, which ends in the teacher's state, and the teacher for the step of the second.

    Args:
      recipe: of the student; the teacher sees the same images.
      teacher: which one.
      split: the data.
      embedding: size that the teacher's embedding must have, where the method needs a certain one.
      prototypes: whether the method asks the teacher for classes, which must then be those of the data.

    Raises:
      UserError: no such run, a network that does not take the images, an embedding of another size, or other classes.
    """
    if teacher.run is None:
        if embedding not in (None, teacher.embedding):
            raise UserError(
                f"teacher.embedding: needs {embedding}, as the student's, got {teacher.embedding}"
            )
        model = network(recipe, backbone=teacher.backbone, embedding=teacher.embedding)
        stage = recognition_stage(
            "teacher",
            dataclasses.replace(recipe, init_from=None, validate_packs=None),  # which are the student's
            split,
            model,
            teacher.head.build(),
            optimizer=teacher.optimizer,
            steps=teacher.steps,
        )
        return stage, training.Teacher(model)
    model, backbone, extra, _ = load_network(teacher.run)
    if embedding not in (None, model.embedding):
        raise UserError(
            f"teacher.run: needs an embedding of {embedding}, as the student's, {teacher.run} has {model.embedding}"
        )
    check_images(teacher.run, model, backbone, extra, split.train.image_shape)
    params, extra = training.run_checkpoint(teacher.run)
    classes = len(split.train.class_names)
    known = {name: params[name] for name in ("backbone", "prototypes", "bias") if name in params}
    if "prototypes" in known and len(known["prototypes"]) < classes:
        if prototypes:
            there = len(known["prototypes"])
            raise UserError(
                f"teacher.run: needs the {classes} classes of the data, {teacher.run} has {there}"
            )
        known = {"backbone": known["backbone"]}
    if prototypes and "prototypes" not in known:
        raise UserError(f"teacher.run: needs class prototypes, {teacher.run} has none")

    def init(rng, previous):
        return training.create_state(rng, known, extra=training.statistics(extra))

    return training.Stage("teacher", init=init, compile_init=False), training.Teacher(model)
