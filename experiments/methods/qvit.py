"""Q-ViT: fully quantized vision transformers, rectified and taught who attends to whom (arXiv:2210.06707).

    python -m experiments.launch qvit --workdir runs/qvit                # 2 bits: 0.924 ± 0.016, its float teacher 0.936
    python -m experiments.launch qvit --preset paper --teacher-run …     # DeiT-S on ImageNet; built and typed, not trained here
    python -m experiments.reproduce qvit --study digits                  # LSQ and hard distillation 0.908 ± 0.015

Differs from the paper in: a teacher that is rectified as its student is, the mean over the terms of the distillation, one step
for the input of a layer, so that a trained network runs on integers (docs/methods/qvit.md#choices-of-ours).
"""

import dataclasses
import functools
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes import recognition as recipe
from experiments.recipes.quantization import StepRate, started_from
from jaxface import data as inputs
from jaxface import inference, losses, training
from jaxface.checks import AtLeast, Fraction, NonNegative, Positive
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.errors import UserError
from jaxface.layers import calibrate
from jaxface.layers.quantization import OPERANDS, QUANTIZATION
from jaxface.models.transformers.quantized import (
    Precision,
    apply_with_operands,
    quantized,
    sown_operands,
)
from jaxface.models.transformers.vit import Block
from jaxface.paths import user_path
from jaxface.training.evaluations.quantized_classes import IntegerForm, QueryCodes, TopClass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(recipe.Recipe):
    """A vision transformer of few bits that starts from a float one, and learns from it."""

    data: inputs.DataSpec = inputs.Digits()
    """Images of classes to be told apart."""
    augment: inputs.Augment = inputs.Augment(flip=0.0)
    """Random changes of the training images."""
    image_size: Annotated[int, AtLeast(8)] = 8
    """Side of the images, pixels."""
    backbone: str = "vit_tiny"
    """A vision transformer: vit_small, deit_small_distilled, swin_tiny …"""
    embedding: None = None
    """The heads of the network are as wide as there are classes."""
    dim: Annotated[int | None, AtLeast(1)] = 32
    """Token size of a ViT; the network's own with None, as in the next four."""
    depth: Annotated[int | None, AtLeast(1)] = 3
    """Blocks of a ViT."""
    heads: Annotated[int | None, AtLeast(1)] = 2
    """Attention heads of a ViT."""
    patch: Annotated[int | None, AtLeast(1)] = 2
    """Side of its patches, pixels."""
    mlp_ratio: Annotated[float | None, Positive] = 2.0
    """Hidden units of its perceptrons per channel."""
    drop_path: Annotated[float, Fraction] = 0.0
    """Rate at which an example skips a branch in the last block."""
    precision: Precision = Precision()
    """Bits, and what the quantizers share and have."""
    calibration: Annotated[int, AtLeast(1)] = 256
    """Training images from which the quantizers get their first steps and signs."""
    step_rate: Annotated[float, Positive] = 5.0
    """Factor on the learning rate of the steps' logarithms."""
    teacher_run: str | None = None
    """The float network: a finished run, a bundle or published weights; trained first on the same data unless given."""
    teacher_optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=3e-3, schedule="cosine", weight_decay=1e-4
    )
    """Optimizer of the float network."""
    teacher_steps: Annotated[int, AtLeast(0)] = 1000
    """Steps of the float network."""
    distillation: Annotated[float, Fraction] = 0.5
    """Share of the teacher's top classes in the loss on classes, the rest being of the labels."""
    dgd_weight: Annotated[float, NonNegative] = 1.0
    """Weight of the distribution-guided distillation; 0 leaves it out."""
    dgd_reduction: Literal["mean", "sum"] = "mean"
    """Mean of its terms, which all networks can weigh alike, or their sum, as printed."""
    teacher_form: Literal["match", "raw"] = "match"
    """What the student's similarities are compared with: those of the teacher's queries and keys, rectified where the student's
    are, or as they are."""
    norm_scope: Literal["sample_head", "tensor"] = "sample_head"
    """What of a layer's similarities has norm 1: those of one head and example, or all of them."""
    center_tokens: Literal["no", "keys", "both"] = "no"
    """Whether similarities are of what is left once the mean over the tokens is taken out."""
    integers: bool = True
    """Judge the student's form on integers too, where its steps allow one."""
    optimizer: training.Optimizer = training.adam(1e-2)
    """Optimizer and learning-rate schedule of the student."""
    batch_size: Annotated[int, AtLeast(1)] = 32
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps of the student."""

    @classmethod
    def paper(cls) -> "Config":
        """ImageNet, DeiT-S with two bits, 300 epochs from its published weights; 72.0 is to be reached, and 68.0 without IRM
        and DGD."""
        return cls(
            data=inputs.Tfds(name="imagenet2012", test="validation", fit="crop"),
            image_size=224,
            augment=inputs.Augment(
                flip=0.5, crop=1.0, crop_scale=(0.08**0.5, 1.0), crop_shift=0.0, color=0.8, color_strength=0.4
            ),
            backbone="deit_small_distilled",
            dim=None,
            depth=None,
            heads=None,
            patch=None,
            mlp_ratio=None,
            drop_path=0.1,
            precision=Precision(bits=2, granularity="channel", zero_point="code"),
            teacher_optimizer=training.Optimizer(
                name="adamw", learning_rate=5e-4, schedule="cosine", warmup=5 / 300, weight_decay=0.05
            ),
            teacher_steps=300 * 1_281_167 // 512,
            step_rate=1.0,
            dgd_reduction="sum",
            optimizer=training.Optimizer(
                name="lamb", learning_rate=3e-4, schedule="cosine", weight_decay=0.0
            ),
            batch_size=512,
            steps=300 * 1_281_167 // 512,
            workers=16,
        )

    @classmethod
    def swin(cls) -> "Config":
        """The same with Swin-T, which has one head."""
        return dataclasses.replace(cls.paper(), backbone="swin_tiny")


def network(config: Config, classes: int) -> nn.Module:
    """The float network, which the quantized one has its form and start from.

    Raises:
      UserError: no vision transformer, or a field that it does not have.
    """
    fields = {name: getattr(config, name) for name in ("dim", "depth", "heads", "patch")}
    fields = {name: value for name, value in fields.items() if value is not None}
    if config.mlp_ratio is not None:
        fields["unit"] = functools.partial(Block, mlp_ratio=config.mlp_ratio)
    model = recipe.network(config, embedding=classes, **fields, drop_path=config.drop_path)
    quantized(model, config.precision)  # refuses what cannot be
    return model


def finished_teacher(config: Config, model: nn.Module, image_shape: tuple[int, int, int]) -> training.Stage:
    """A stage without steps that ends in the float network of `teacher_run`.

    Raises:
      UserError: no such run, or another network.
    """
    bundle = inference.open_recognizer(user_path("teacher_run", config.teacher_run))
    bundle.check_plain("teacher_run")
    wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))["params"]
    shapes = [
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (wanted, bundle.variables["params"]))
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        here, there = (leaves.get(name, "nothing") for leaves in shapes)
        if here != there:
            raise UserError(
                f"teacher_run: {config.teacher_run} has another network: {name} is {there} there and {here} here"
            )

    def init(rng, previous):
        return training.create_state(rng, {"backbone": bundle.variables["params"]})

    return training.Stage("teacher", init=init, compile_init=False, description=bundle.description())


def build(config: Config) -> list[training.Stage]:
    """The float teacher, the quantized student that starts from it, and the student's form on integers where it has one."""
    recipe.check_no_packs(config, "a classifier tells no pairs")
    if config.init_from is not None:
        raise UserError("init_from: the student starts from its teacher, which teacher_run gives")
    split = recipe.load(config)
    if split.protocol != "classification":
        raise UserError(f"data: needs classes to be told apart, {split.name} is for {split.protocol}")
    image_shape = split.train.image_shape
    model = network(config, len(split.train.class_names))
    student, teacher = quantized(model, config.precision), training.Teacher(model)
    separate = {"separate": True} if getattr(model, "distilled", False) else {}
    open_batches = recipe.training_batches(config, split.train)

    def heads(output):
        return output if separate else (output, output)

    def initial(module, rng):
        image = jnp.zeros((1, *image_shape))
        return jax.jit(lambda rng: module.init(rng, image, train=False))(rng)["params"]

    def stage(name, loss, rule, steps, init, evaluate, **fields):
        objective = training.Objective(loss, rule.build(steps, network=("backbone", model)))
        ema = config.ema_decay is not None

        def created(rng, previous):
            params, extra = init(rng, previous)
            return training.create_state(rng, {"backbone": params}, objective, extra=extra, ema=ema)

        step = training.gradient_step(
            objective,
            accumulate=config.accumulate,
            ema_decay=config.ema_decay,
            frozen=config.optimizer.held if name == "student" else None,
        )
        return training.Stage(
            name=name,
            init=created,
            step=step,
            batches=lambda state: open_batches(),
            steps=steps,
            evaluate=evaluate,
            best="classification/accuracy",
            **fields,
        )

    # Stage 1: the float network, which knows the labels alone.
    def float_loss(params, extra, batch, rng):
        output = model.apply(
            {"params": params["backbone"]}, batch["image"], train=True, rngs={"dropout": rng}, **separate
        )
        terms = [losses.cross_entropy(logits, batch["label"]).mean() for logits in heads(output)]
        return sum(terms) / 2, (extra, {})

    if config.teacher_run is None:
        first = stage(
            "teacher",
            float_loss,
            config.teacher_optimizer,
            config.teacher_steps,
            lambda rng, previous: (initial(model, rng), {}),
            TopClass(model, split.held_out),
        )
    else:
        first = finished_teacher(config, model, image_shape)

    # Stage 2: the quantized one. Its quantizers see some images before anything is compiled.
    def start(rng, previous):
        params = started_from(initial(student, rng), previous.averaged_params["backbone"])
        count = min(config.calibration, len(split.train))
        images = normalize_pixels(np.stack([split.train[i]["image"] for i in range(count)]))
        variables = calibrate(student, {"params": params}, images, train=False)
        extra = {QUANTIZATION: variables[QUANTIZATION]}
        return variables["params"], teacher.installed(extra, previous)

    def loss(params, extra, batch, rng):
        frozen = training.network_variables(extra["teacher"]["params"], extra["teacher"])
        answers = apply_with_operands(model, frozen, batch["image"], train=False)
        answer, targets = jax.lax.stop_gradient(answers)
        output, sown = student.apply(
            training.network_variables(params["backbone"], extra),
            batch["image"],
            train=True,
            rngs={"dropout": rng},
            mutable=[OPERANDS],
            **separate,
        )
        # Hard distillation, and equation 13.
        classes = losses.hard_distillation_loss(
            *heads(output), batch["label"], answer, alpha=config.distillation
        ).mean()
        total, report = classes, {"class_loss": classes}
        if config.dgd_weight > 0:
            report["dgd_loss"] = losses.dgd_loss(
                sown_operands(sown),
                targets,
                standardize_teacher=config.teacher_form == "match" and config.precision.rectify is not None,
                reduction=config.dgd_reduction,
                norm_scope=config.norm_scope,
                center_tokens=False if config.center_tokens == "no" else config.center_tokens,
            )
            total += config.dgd_weight * report["dgd_loss"]
        return total, (extra, report)

    codes = QueryCodes(student, config.precision.bits, model, split.held_out)
    second = stage(
        "student",
        loss,
        StepRate(config.optimizer, config.step_rate),
        config.steps,
        start,
        training.Evaluations(TopClass(student, split.held_out), codes),
        compile_init=False,
    )

    # The student on integers, where its steps allow it.
    if (
        not config.integers
        or config.precision.granularity != "tensor"
        or config.precision.zero_point == "input"
    ):
        return [first, second]
    judged = IntegerForm(model, config.precision, student, split.held_out)
    third = training.Stage(
        "integer", init=lambda rng, previous: previous, compile_init=False, evaluate=judged
    )
    return [first, second, third]
