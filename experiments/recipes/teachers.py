"""The teacher of a distillation: a finished run, or a network trained first on the same data.

Methods: acw, cckd, cloak, coupleface, dcp_nas, ida, ota, rbonn, rco, sparsevit
"""

import dataclasses
from typing import Annotated

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, check_trained, network, recognition_stage
from jaxface import data as inputs
from jaxface import inference, training
from jaxface.checks import AtLeast
from jaxface.errors import UserError
from jaxface.paths import user_path
from jaxface.training.workdir import stage_folders


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """The network to learn from: a finished run, or one trained first on the same data."""

    run: str | None = None
    """A finished run of any method with an embedding network, a bundle or published weights; other fields are not used then."""
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

    @classmethod
    def imagenet(cls) -> "TeacherSpec":
        """The ResNet-34 that binary networks learn from on ImageNet, as torchvision trains it: 90 epochs of 256 images a step."""
        return cls(
            backbone="resnet34",
            embedding=None,
            head=HeadSpec(loss="linear"),
            optimizer=training.sgd(0.1, decay_at=(1 / 3, 2 / 3), weight_decay=1e-4),
            steps=90 * 1_281_167 // 256,
        )


def teacher_stage(
    recipe: Recipe,
    teacher: TeacherSpec,
    split: inputs.Split,
    *,
    embedding: int | None = None,
    prototypes: bool = False,
    init_from: str | None = None,
) -> tuple[training.Stage, training.Teacher]:
    """The first stage of a distillation, which ends in the teacher's state, and the teacher for the step of the second.

    Args:
      recipe: of the student; the teacher sees the same images.
      teacher: which one.
      split: the data.
      embedding: size that the teacher's embedding must have, where the method needs a certain one.
      prototypes: whether the method asks the teacher for classes, which must then be those of the data.
      init_from: what a teacher that is trained starts from; the recipe's is for the student.

    Raises:
      UserError: no such run, a network that does not take the images, an embedding of another size, or other classes; `init_from`
        for a teacher that is finished.
    """
    if teacher.run is None:
        if embedding not in (None, teacher.embedding):
            raise UserError(
                f"teacher.embedding: needs {embedding}, as the student's, got {teacher.embedding}"
            )
        model = network(recipe, backbone=teacher.backbone, embedding=teacher.embedding)
        stage = recognition_stage(
            "teacher",
            dataclasses.replace(
                recipe, init_from=init_from, validate_packs=None
            ),  # the packs are the student's
            split,
            model,
            teacher.head.build(),
            optimizer=teacher.optimizer,
            steps=teacher.steps,
        )
        return stage, training.Teacher(model)
    check_trained(init_from, "teacher.run")
    bundle = inference.open_recognizer(user_path("teacher.run", teacher.run))
    model, extra = bundle.module, training.statistics(bundle.variables)
    if embedding not in (None, model.embedding):
        raise UserError(
            f"teacher.run: needs an embedding of {embedding}, as the student's, {teacher.run} has {model.embedding}"
        )
    bundle.check_plain("teacher.run")
    bundle.check_images(split.train.image_shape)
    classes = len(split.train.class_names)
    known = {"backbone": bundle.variables["params"]}
    if stage_folders(teacher.run):
        params, _ = training.run_checkpoint(teacher.run)
        known |= {name: params[name] for name in ("prototypes", "bias") if name in params}
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

    stage = training.Stage("teacher", init=init, compile_init=False, description=bundle.description())
    return stage, training.Teacher(model)
