"""Cloak: masks that hide people from face recognition, by gradient accumulation (GA-OPOM, arXiv:2401.01575)."""

import dataclasses
import functools
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, load
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import attacks, axes, metrics, training
from jaxface import data as inputs
from jaxface.errors import UserError
from jaxface.losses.checks import check_range
from jaxface.training import figures

__all__ = ["Config", "build"]

RANKS = (1, 5)
"""Ranks k of the reported PSR@k."""
SHOWN = 6
"""People in the figure of cloaked images."""
DRAWN = ("surrogate/psr@1", "black_box/psr@1")
"""Metrics in the figure of all methods."""

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
    """Also make masks by FI-UAP and by OPOM of all photos or of few: in as many steps, and from as many gradients."""
    people: int = 20
    """People to protect; the rest of those not trained on are distractors, with all of their images."""
    photos: int = 10
    """Photos of a person that the mask is made from."""
    tests: int = 5
    """Other photos of the person that it is tried on, at most; at least two."""
    people_per_step: int = 4
    """People whose masks are made at a time, rounded up to a multiple of the devices."""
    protect: str | None = None
    """Folder of people to protect, <folder>/<person>/<image>, instead of people held out of `data`."""
    distractors: str | None = None
    """Folder of people to be distractors, besides those that are left over."""

    @classmethod
    def paper(cls) -> "Config":
        """CASIA-WebFace networks and Privacy-Commons: mean PSR@1 over six targets above OPOM's at equal steps is the test."""
        long = training.Optimizer(decay_at=(100 / 180, 140 / 180, 160 / 180))
        softmax = HeadSpec(loss="softmax", scale=32.0, margin=0.0)
        target = functools.partial(TeacherSpec, embedding=512, optimizer=long, steps=180_000)
        return cls(
            data=inputs.Folder(root="casia-webface", held_out=0.02),
            protect="privacy-commons",
            distractors="privacy-commons-distractors",
            image_size=112,
            backbone="iresnet50",
            embedding=512,
            head=softmax,
            bfloat16=True,
            batch_size=256,
            steps=180_000,
            optimizer=long,
            targets=(
                target(backbone="resnet50", head=HeadSpec(loss="arcface", scale=64.0, margin=0.5)),
                target(backbone="resnet50", head=HeadSpec(loss="cosface", scale=64.0, margin=0.35)),
                target(backbone="iresnet34", head=HeadSpec(loss="arcface", scale=64.0, margin=0.5)),
                target(backbone="mobilefacenet", head=softmax),
                target(backbone="mobilenet_v2", head=softmax),
                target(backbone="face_resnet34", head=softmax),
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


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Who is protected, on which photos, and among whom they are looked for."""

    photos: "People"
    """Record i: the photos [N, H, W, C] that the mask of person i is made from, `label` i."""
    tests: np.ndarray
    """[I, m, H, W, C] uint8, other photos of the same people."""
    distractors: np.ndarray
    """[G, H, W, C] uint8, images of other people."""


class People:
    """A source whose records are people: `image` uint8 [N, H, W, C] and `label`; it goes round to fill whole steps."""

    def __init__(self, source: inputs.Source, rows: np.ndarray, per_step: int):
        self._source, self._rows = source, rows  # [I, N]
        # A multiple of the devices, and not many more than there are people.
        devices = jax.device_count()
        self.per_step = -(-min(per_step, len(rows)) // devices) * devices
        self._length = -(-len(rows) // self.per_step) * self.per_step
        self.image_shape = source.image_shape
        self.labels = np.arange(self._length, dtype=np.int32) % len(rows)
        self.class_names = [source.class_names[source.labels[row[0]]] for row in rows]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> inputs.Record:
        label = self.labels[index]
        images = np.stack([self._source[int(i)]["image"] for i in self._rows[label]])
        return {"image": images, "label": label}


def stacked(source: inputs.Source, rows) -> np.ndarray:
    """[len(rows), H, W, C] uint8, the images of some records."""
    return np.stack([source[int(i)]["image"] for i in rows])


def protocol(config: Config, unseen: inputs.Source) -> Protocol:
    """Divides people that no network has seen into protected ones and distractors.

    The first people with enough photos are protected, in the order of the data: their first photos make the mask, the next ones
    are tested. Everybody else is a distractor.

    Raises:
      UserError: too few people with enough photos, or too few distractors.
    """
    if config.protect is not None:
        unseen = inputs.FolderSource(config.protect, image_size=config.image_size)
    by_person = [np.flatnonzero(unseen.labels == label) for label in range(len(unseen.class_names))]
    enough = [rows for rows in by_person if len(rows) >= config.photos + 2][: config.people]
    if len(enough) < config.people:
        raise UserError(
            f"people: needs {config.people} people with at least {config.photos + 2} photos that are not trained on, "
            f"got {len(enough)} of {len(by_person)}"
        )
    tests = min([config.tests, *(len(rows) - config.photos for rows in enough)])
    protected = {unseen.labels[rows[0]] for rows in enough}
    others = [i for label, rows in enumerate(by_person) if label not in protected for i in rows]
    distractors = [stacked(unseen, others)] if others else []
    if config.distractors is not None:
        source = inputs.FolderSource(config.distractors, image_size=config.image_size)
        distractors.append(stacked(source, range(len(source))))
    count = sum(map(len, distractors))
    if count + 1 < max(RANKS):
        raise UserError(
            f"people: PSR@{max(RANKS)} needs at least {max(RANKS) - 1} images of distractors, got {count}; protect fewer "
            "people or give a folder of distractors"
        )
    return Protocol(
        People(unseen, np.stack([rows[: config.photos] for rows in enough]), config.people_per_step),
        np.stack([stacked(unseen, rows[config.photos : config.photos + tests]) for rows in enough]),
        np.concatenate(distractors),
    )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    if config.surrogate is None:
        config.head.check()
    if not config.targets:
        raise UserError("targets: needs at least one network to try the masks on, got none")
    for name, least in (("people", 1), ("photos", 1), ("tests", 2), ("people_per_step", 1)):
        check_range(name, getattr(config, name), least, float("inf"))
    config.cloak.check(config.photos)


def methods(config: Config) -> dict[str, attacks.Cloak]:
    """What masks are made by, by the name of the stage; the configured one last.

    The baselines push with the same ε and step size, at the same number of steps or of differentiated photos, rounded up.
    """
    ours = config.cloak
    if not config.baselines:
        return {"cloak": ours}
    plain = dataclasses.replace(
        ours, objective="opom", hull="center", batch=0, accumulate=1, momentum=0.0, dropout=0.0
    )
    small = dataclasses.replace(plain, batch=min(ours.batch or 2, config.photos))
    photos = ours.photo_gradients(config.photos)
    return {
        "fi_uap": dataclasses.replace(plain, objective="fi_uap"),
        "opom": plain,
        "opom_equal_gradients": dataclasses.replace(plain, steps=-(-photos // config.photos)),
        "small_batch": small,
        "small_batch_equal_gradients": dataclasses.replace(small, steps=-(-photos // small.batch)),
        "cloak": ours,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A finished network, on the host."""

    model: object
    variables: dict

    def embeddings(self, images: np.ndarray) -> np.ndarray:
        """[..., D] of uint8 images [..., H, W, C], without their mirror images."""
        flat = images.reshape(-1, *images.shape[-3:])
        source = inputs.ArraySource(flat, np.zeros(len(flat), np.int32), ["all"])
        made = training.embed_source(
            self.model, self.variables["params"], training.statistics(self.variables), source, flip=False
        )
        return made.reshape(*images.shape[:-3], -1)


class Protection:
    """How often the people under masks are not found, by the surrogate and by the black boxes.

        <network>/psr@k                    for surrogate, target1, target2, …
        black_box/psr@k                    mean over the targets
        <…>/clean_psr@k, random_psr@k      floors: no mask, and a mask of random signs of ε for each person

    Args:
      networks: by name, the surrogate among them.
      faces: photos to mask and to look among.
      epsilon: of the random masks.
      seed: of the random masks.
    """

    def __init__(self, networks: dict[str, Network], faces: Protocol, epsilon: float, seed: int):
        self.networks, self.faces, self.epsilon, self.seed = networks, faces, epsilon, seed

    @functools.cached_property
    def known(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Embeddings of the clean test photos and of the distractors, by network."""
        return {
            name: (net.embeddings(self.faces.tests), net.embeddings(self.faces.distractors))
            for name, net in self.networks.items()
        }

    def success(self, masks: np.ndarray) -> dict[str, float]:
        """PSR@k of every network and the mean over the targets, for masks [I, H, W, C]."""
        images = np.asarray(attacks.apply_cloak(self.faces.tests, masks[:, None]))
        report = {}
        for name, net in self.networks.items():
            rates = metrics.protection_success(net.embeddings(images), *self.known[name], RANKS)
            report |= {f"{name}/psr@{k}": rate for k, rate in rates.items()}
        targets = [name for name in self.networks if name != "surrogate"]
        for k in RANKS:
            report[f"black_box/psr@{k}"] = float(np.mean([report[f"{name}/psr@{k}"] for name in targets]))
        return report

    @functools.cached_property
    def floors(self) -> dict[str, float]:
        """What no mask and random ones give."""
        shape = (len(self.faces.tests), *self.faces.tests.shape[-3:])
        signs = np.random.default_rng([self.seed, 4]).choice(np.float32([-1, 1]), shape)
        made = {}
        for kind, masks in (("clean", np.zeros(shape, np.float32)), ("random", self.epsilon * signs)):
            for key, value in self.success(masks).items():
                name, _, rank = key.partition("/")
                if name in ("surrogate", "black_box"):
                    made[f"{name}/{kind}_{rank}"] = value
        return made

    def evaluate(self, state: training.TrainState, cloak: attacks.Cloak) -> dict[str, float]:
        """All of it for the masks of a state, and what they cost."""
        photos = len(self.faces.photos[0]["image"])
        cost = {"photo_gradients": float(cloak.photo_gradients(photos))}
        return self.success(np.asarray(state.params["masks"])) | self.floors | cost

    def figures(self, state: training.TrainState, by_method: dict[str, dict[str, float]]) -> training.Figures:
        """Cloaked images of a few people; the PSR of every method beside the floors."""
        masks = np.asarray(state.params["masks"])[:SHOWN]
        clean = self.faces.tests[:SHOWN, 0]
        rows = {
            "clean": clean,
            "cloaked": np.asarray(attacks.apply_cloak(clean, masks)),
            f"mask, ±{self.epsilon:g} enlarged": np.rint(127.5 + 127.5 * masks / self.epsilon).astype(
                np.uint8
            ),
        }
        bars = {}
        for kind in ("clean", "random"):
            bars[kind] = {key: self.floors[key.replace("/", f"/{kind}_")] for key in DRAWN}
        latest = {"cloak": self.success(np.asarray(state.params["masks"]))}
        for name, found in (by_method | latest).items():
            bars[name] = {key: found[key] for key in DRAWN}
        return {
            "cloaked": functools.partial(figures.save_image_rows, rows),
            "protection": functools.partial(figures.save_bars, bars, xlabel="protection success rate"),
        }


def cloak_stage(
    name: str,
    config: Config,
    cloak: attacks.Cloak,
    first: Network,
    judged: Protection,
    by_method: dict[str, dict[str, float]],
) -> training.Stage:
    """The stage that makes one mask per person, a few people in a step; its state holds the masks and the frozen surrogate."""
    faces = judged.faces

    def init(rng, previous):
        masks = jnp.zeros((config.people, *faces.tests.shape[-3:]), jnp.float32)
        return training.create_state(rng, {"masks": masks}, extra={"surrogate": first.variables})

    def step(state, batch):
        """Masks of the people in a batch, images [P, N, H, W, C] in [-1, 1]."""
        embed = attacks.surrogate(first.model, state.extra["surrogate"], dropout=cloak.dropout)
        photos = jnp.rint(batch["image"] * 127.5 + 127.5)
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
            faces.photos,
            batch_size=faces.photos.per_step,
            seed=0,
            shuffle=False,
            shard=(jax.process_index(), jax.process_count()),
        ),
        steps=len(faces.photos) // faces.photos.per_step,
        evaluate=functools.partial(judged.evaluate, cloak=cloak),
        figures=functools.partial(judged.figures, by_method=by_method) if name == "cloak" else None,
        compile_init=False,
    )


def build(config: Config) -> Generator[training.Stage, training.Outcome, None]:
    """The surrogate, the black boxes, then a stage of masks for every method that is compared."""
    check(config)
    split = load(config)
    if split.protocol != "verification":
        raise UserError(
            f"data: needs people that are not trained on; {split.name} tests the people of its training"
        )
    chosen = methods(config)
    for cloak in chosen.values():
        cloak.check(config.photos)
    faces = protocol(config, split.held_out)
    surrogate = TeacherSpec(
        run=config.surrogate,
        backbone=config.backbone,
        embedding=config.embedding,
        head=config.head,
        optimizer=config.optimizer,
        steps=config.steps,
    )
    wanted = {"surrogate": surrogate} | {f"target{i}": t for i, t in enumerate(config.targets, start=1)}
    trained = {name: teacher_stage(config, teacher, split) for name, teacher in wanted.items()}

    def stages():
        networks = {}
        for name, (stage, teacher) in trained.items():
            state = (yield dataclasses.replace(stage, name=name)).state
            variables = training.network_variables(state.averaged_params["backbone"], state.extra)
            networks[name] = Network(teacher.model, jax.tree.map(np.asarray, variables))
        judged = Protection(networks, faces, config.cloak.epsilon, config.seed)
        by_method = {}
        for name, cloak in chosen.items():
            outcome = yield cloak_stage(name, config, cloak, networks["surrogate"], judged, by_method)
            by_method[name] = outcome.metrics

    return stages()
