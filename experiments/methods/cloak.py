"""Cloak: masks that hide people from face recognition, by gradient accumulation (GA-OPOM, arXiv:2401.01575).

    python -m experiments.launch cloak --workdir runs/cloak               # rendered faces
    python -m experiments.launch cloak --preset procedural --workdir runs/cloak   # 1 CPU-minute: black_box/psr@1 0.76
    python -m experiments.reproduce cloak --study transfer                # 0.749 ± 0.054, OPOM-ClassCenter 0.667 ± 0.065

Differs from the paper in: the look-ahead between small batches, our reading of what its abstract sums
(docs/methods/cloak.md#choices-of-ours).
"""

import dataclasses
import functools
from collections.abc import Generator
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import (
    Recipe,
    check_no_packs,
    check_trained,
    load,
    network,
    recognition_stage,
)
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import attacks, axes, training
from jaxface import data as inputs
from jaxface.checks import AtLeast
from jaxface.data.transforms import pixels
from jaxface.errors import UserError

__all__ = ["Config", "build"]

Adam = functools.partial(training.Optimizer, name="adam", weight_decay=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """One mask per person, made on a network of our own and tried on others.

    Backbone, embedding, optimizer and steps are those of the surrogate, the network that the masks are made on.
    """

    data: inputs.DataSpec = inputs.RenderedFaces(
        identities=128, per_identity=16, held_out_identities=60, held_out_per_identity=15
    )
    """Faces to train the networks on; the people to protect and the distractors are among the others."""
    steps: int = 400
    """Training steps of the surrogate."""
    head: HeadSpec = HeadSpec(loss="softmax", scale=16.0, margin=0.0)
    """Loss of the surrogate."""
    surrogate: str | None = None
    """Work directory of a finished run to take that network from, instead of training one."""
    targets: tuple[TeacherSpec, ...] = (
        TeacherSpec(backbone="iresnet_nano", head=HeadSpec(loss="arcface"), steps=400),
        TeacherSpec(backbone="iresnet_pico", head=HeadSpec(loss="cosface", margin=0.2), steps=400),
    )
    """Black boxes: other networks, trained on the same people or taken from finished runs, that the masks never saw."""
    cloak: attacks.Cloak = attacks.Cloak()
    """How masks are made."""
    baselines: bool = True
    """Also make masks by FI-UAP, OPOM-ClassCenter and OPOM-ConvexHull, as released, and by small batches: in as many steps, and
    from as many gradients."""
    people: Annotated[int, AtLeast(1)] = 20
    """People to protect; the rest of those not trained on are distractors, with all of their images."""
    photos: Annotated[int, AtLeast(1)] = 10
    """Photos of a person that the mask is made from."""
    tests: Annotated[int, AtLeast(2)] = 5
    """Other photos of the person that it is tried on, at most; at least two."""
    people_per_step: Annotated[int, AtLeast(1)] = 4
    """People whose masks are made at a time, rounded up to a multiple of the devices."""
    protect: str | None = None
    """Folder of people to protect, <folder>/<person>/<image>, instead of people held out of `data`."""
    distractors: str | None = None
    """Folder of people to be distractors, besides those that are left over."""

    @classmethod
    def paper(cls) -> "Config":
        """CASIA-WebFace networks and Privacy-Commons: mean PSR@1 over six targets above OPOM's at equal steps is the test.

        Surrogate and targets are those of OPOM's release; docs/methods/cloak.md#the-papers-recipe lists what differs.
        """
        long = training.Optimizer(decay_at=(100 / 180, 140 / 180, 160 / 180))
        softmax = HeadSpec(loss="softmax", scale=32.0, margin=0.0)
        target = functools.partial(TeacherSpec, embedding=512, optimizer=long, steps=180_000)
        return cls(
            data=inputs.Folder(root="casia-webface", held_out=0.02),
            protect="privacy-commons",
            distractors="privacy-commons-distractors",
            image_size=112,
            backbone="iresnet50",
            block="sface",
            dropout=0.5,
            embedding=512,
            head=softmax,
            bfloat16=True,
            batch_size=256,
            steps=180_000,
            optimizer=long,
            targets=(
                target(backbone="iresnet50", head=HeadSpec(loss="arcface", scale=64.0, margin=0.5)),
                target(backbone="iresnet50", head=HeadSpec(loss="cosface", scale=64.0, margin=0.35)),
                target(backbone="iresnet50", head=HeadSpec(loss="sface", scale=64.0, margin=0.0)),
                target(backbone="mobilenet", head=softmax),
                target(backbone="se_iresnet50", head=softmax),
                target(backbone="inception_resnet", head=softmax),
            ),
            people=500,
            workers=8,
        )

    @classmethod
    def procedural(cls) -> "Config":
        """Images of waves and perceptrons, seconds per run; ε of 24, where masks carry over to networks as small as these."""
        optimizer = Adam(learning_rate=2e-3, schedule="cosine")
        target = functools.partial(TeacherSpec, embedding=48, optimizer=optimizer, steps=300)
        softmax, cosface = (
            HeadSpec(loss="softmax", scale=16.0, margin=0.0),
            HeadSpec(loss="cosface", scale=16.0, margin=0.2),
        )
        return cls(
            data=inputs.ProceduralImages(),
            augment=inputs.Augment(flip=0.0),
            image_size=16,
            backbone="mlp_128",
            embedding=48,
            head=softmax,
            optimizer=optimizer,
            batch_size=128,
            steps=300,
            targets=(
                target(backbone="mlp_128x128", head=cosface),
                target(backbone="mlp_192", head=softmax),
                target(backbone="mlp_96x96", head=cosface),
            ),
            cloak=attacks.Cloak(epsilon=24.0, step_size=3.0),
            baselines=False,
            people=60,
            people_per_step=60,
        )


def trial(config: Config, unseen: inputs.Source) -> training.CloakTrial:
    """Who is protected, and among whom they are looked for: people that no network has seen, or those of the given folders."""
    if config.protect is not None:
        unseen = inputs.FolderSource(config.protect, image_size=config.image_size)
    more_distractors = None
    if config.distractors is not None:
        more_distractors = inputs.FolderSource(config.distractors, image_size=config.image_size)
    return training.CloakTrial.divide(
        unseen,
        people=config.people,
        photos=config.photos,
        tests=config.tests,
        people_per_step=config.people_per_step,
        more_distractors=more_distractors,
    )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    if config.surrogate is None:
        config.head.check()
    else:
        check_no_packs(config, f"surrogate takes that of {config.surrogate}")
    if not config.targets:
        raise UserError("targets: needs at least one network to try the masks on, got none")
    config.cloak.check(config.photos)


def methods(config: Config) -> dict[str, attacks.Cloak]:
    """What masks are made by, by the name of the stage; the configured one last.

    The baselines push with the same ε and step size, at the same number of steps or of differentiated photos, rounded up. Those
    of all photos step as their release does.
    """
    ours = config.cloak
    if not config.baselines:
        return {"cloak": ours}
    plain = dataclasses.replace(
        ours, objective="opom", hull="center", batch=0, accumulate=1, momentum=0.0, dropout=0.0, rederive=True
    )
    small = dataclasses.replace(plain, batch=min(ours.batch or 2, config.photos), rederive=False)
    photos = ours.photo_gradients(config.photos)
    return {
        "fi_uap": dataclasses.replace(plain, objective="fi_uap"),
        "opom": plain,
        "opom_convex": dataclasses.replace(plain, hull="convex"),
        "opom_equal_gradients": dataclasses.replace(plain, steps=-(-photos // config.photos)),
        "small_batch": small,
        "small_batch_equal_gradients": dataclasses.replace(small, steps=-(-photos // small.batch)),
        "cloak": ours,
    }


def surrogate_stage(config: Config, split: inputs.Split) -> tuple[training.Stage, training.Teacher]:
    """The network that masks are made on: that of a finished run, or the configured one, trained first."""
    if config.surrogate is not None:
        check_trained(config.init_from, "surrogate")
        return teacher_stage(config, TeacherSpec(run=config.surrogate), split)
    model = network(config)
    return recognition_stage("surrogate", config, split, model, config.head.build()), training.Teacher(model)


def cloak_stage(
    name: str,
    config: Config,
    cloak: attacks.Cloak,
    surrogate: training.FrozenNetwork,
    protection: training.CloakProtection,
    earlier: dict[str, dict[str, float]],
) -> training.Stage:
    """One mask per person, a few people in a step; the state holds the masks and the frozen surrogate.

    Args:
      name: of the stage.
      config: of the run.
      cloak: how the masks are made.
      surrogate: the network that they are made on.
      protection: the evaluation, which holds the photos.
      earlier: metrics of the methods before, for the figure of the last.
    """
    trial = protection.trial

    def init(rng, previous):
        masks = jnp.zeros((config.people, *trial.tests.shape[-3:]), jnp.float32)
        return training.create_state(rng, {"masks": masks}, extra={"surrogate": surrogate.variables})

    def step(state, batch):
        """Masks of the people in a batch, images [P, N, H, W, C] in [-1, 1]."""
        embed = attacks.surrogate(surrogate.model, state.extra["surrogate"], dropout=cloak.dropout)
        photos = jnp.rint(pixels.to_levels(batch["image"]))
        keys = jax.vmap(lambda person: jax.random.fold_in(state.rng, person))(batch["label"])
        make = functools.partial(attacks.make_cloak, embed, cloak=cloak)
        masks, people = jax.vmap(make)(photos, keys), batch["label"]
        size = axes.mean(jnp.abs(masks).mean())
        if axes.bound(axes.DATA):
            masks, people = (jax.lax.all_gather(x, axes.DATA, tiled=True) for x in (masks, people))
        masks = state.params["masks"].at[people].set(masks)
        return state.replace(step=state.step + 1, params={"masks": masks}), {"mean_change": size}

    return training.Stage(
        name=name,
        init=init,
        step=step,
        batches=lambda state: inputs.batches(
            trial.photos,
            batch_size=trial.photos.per_step,
            seed=0,
            shuffle=False,
            shard=(jax.process_index(), jax.process_count()),
        ),
        steps=len(trial.photos) // trial.photos.per_step,
        evaluate=functools.partial(protection.evaluate, cloak=cloak),
        figures=functools.partial(protection.figures, earlier=earlier) if name == "cloak" else None,
        compile_init=False,
        key="cloak",  # all methods draw the same photos
    )


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """The surrogate, the black boxes, then a stage of masks for every method that is compared."""
    check(config)
    split = load(config)
    if split.protocol != "verification":
        raise UserError(
            f"data: needs people that are not trained on; {split.name} tests the people of its training"
        )
    cloaks = methods(config)
    for cloak in cloaks.values():
        cloak.check(config.photos)
    people = trial(config, split.held_out)
    to_train = {"surrogate": surrogate_stage(config, split)}
    to_train |= {f"target{i}": teacher_stage(config, t, split) for i, t in enumerate(config.targets, start=1)}

    def stages():
        # The surrogate that masks are made on, and the black boxes that never see them made.
        networks = {}
        for name, (stage, teacher) in to_train.items():
            # The run is opened as the network that its masks were made on.
            described = stage.description if name == "surrogate" else None
            state = (yield dataclasses.replace(stage, name=name, description=described)).state
            variables = training.network_variables(state.averaged_params["backbone"], state.extra)
            networks[name] = training.FrozenNetwork(teacher.model, jax.tree.map(np.asarray, variables))
        # Masks by every method, tried on all networks; GA-OPOM is the last.
        protection = training.CloakProtection(networks, people, config.cloak.epsilon, config.seed)
        by_method = {}
        for name, cloak in cloaks.items():
            outcome = yield cloak_stage(name, config, cloak, networks["surrogate"], protection, by_method)
            by_method[name] = outcome.metrics

    return stages()
