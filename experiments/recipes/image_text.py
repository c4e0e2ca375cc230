"""Up-A, the first stage of INTERN: a backbone learned from images and their captions (arXiv:2111.08687, 2110.05208).

Methods: intern
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxface import axes, inference, losses, optimizers, training
from jaxface import data as inputs
from jaxface.checks import AtLeast, Fraction, Integers, NonNegative, Ordered, Range, check_fields
from jaxface.data.render.face_captions import SYNONYMS
from jaxface.data.transforms.captioned_views import CaptionViews, CaptionViewSpec
from jaxface.data.transforms.text import Tokenizer
from jaxface.errors import UserError
from jaxface.layers.prototypes import l2_normalize
from jaxface.layers.remat import Remat
from jaxface.models.image_text_heads import ImageTextHeads
from jaxface.models.staged import features as staged
from jaxface.models.transformers.text_tower import TextTower
from jaxface.paths import user_path
from jaxface.training.evaluations.caption_retrieval import CaptionRetrieval
from jaxface.training.workdir import read_description

STAGE = "up_a"


@dataclasses.dataclass(frozen=True)
class TextTowerSpec:
    """The transformer of the captions."""

    dim: Annotated[int, AtLeast(1)] = 64
    """Size of a token."""
    depth: Annotated[int, AtLeast(1)] = 1
    """Blocks."""
    heads: Annotated[int, AtLeast(1)] = 4
    """Attention heads."""
    length: Annotated[int, Integers(3, 1024)] = 32
    """Tokens of a caption, start and end included; longer ones are cut."""
    vocabulary: Annotated[int, AtLeast(260)] = 480
    """Most tokens of a tokenizer that is trained on the captions of the run."""
    causal: bool = False
    """Whether a token sees those before it alone, as in CLIP; the masked words are then told from what stands before them."""


@dataclasses.dataclass(frozen=True)
class UpA:
    """Images and captions learned from each other, from themselves and from their places."""

    steps: Annotated[int, AtLeast(0)] = 400
    """Training steps."""
    batch_size: Annotated[int, AtLeast(2)] = 64
    """Captioned images per step over all devices; each is seen in two views."""
    optimizer: training.Optimizer = training.Optimizer(
        name="adamw", learning_rate=2e-3, schedule="cosine", warmup=0.05, weight_decay=0.1
    )
    """Optimizer; adamw has 0.98 as the decay of its second moment."""
    features: Annotated[int, AtLeast(1)] = 64
    """Size of what images and captions are compared by."""
    text: TextTowerSpec = TextTowerSpec()
    """The text tower."""
    tokenizer: str | None = None
    """A tokenizer.json, or a run with a text tower; one is trained on the captions of the run unless given."""
    init_from: str | None = None
    """A run of this stage to start from; its tokenizer is that run's; one that is given besides needs to be the same."""
    views: CaptionViewSpec = CaptionViewSpec()
    """How the two views are made."""
    weights: losses.DeclipWeights = losses.DeclipWeights()
    """Weights of the terms."""
    local_weight: Annotated[float, NonNegative] = 0.2
    """Weight of the places of two views; 0 leaves them out."""
    local_level: int = 1
    """Level of the backbone whose places these are, from 0; -1 is the coarsest."""
    projected: Annotated[int, AtLeast(1)] = 128
    """Size of the projections of views."""
    predicted: Annotated[int, AtLeast(1)] = 64
    """Hidden size of their predictor."""
    bank: Annotated[int, AtLeast(2)] = 65_536
    """Most captions that neighbors are looked for among; a quarter of those that the run sees where that is less."""
    mask_rate: Annotated[float, Fraction] = 0.15
    """Share of the words that is to be told."""
    clamp: Annotated[tuple[float, float], Range(-10, 10), Ordered()] = (3.0, 6.0)
    """Least and greatest θ after a step; the scale of the logits is exp(θ), at most 100."""

    @classmethod
    def paper(cls) -> "UpA":
        """DeCLIP's recipe on YFCC15M, 32 devices with 128 pairs each; Up-A's own numbers were not published."""
        steps = 128_000
        return cls(
            steps=steps,
            batch_size=4096,
            optimizer=training.Optimizer(
                name="adamw", learning_rate=1e-3, schedule="cosine", warmup=2500 / steps, weight_decay=0.1
            ),
            features=1024,
            text=TextTowerSpec(dim=512, depth=12, heads=8, length=77, vocabulary=49_408, causal=True),
            views=CaptionViewSpec(
                window=(0.2**0.5, 1.0),
                flip=0.5,
                pixels=inputs.Augment(flip=0.0, color=0.8, color_strength=0.4, hue=0.1, gray=0.2, blur=0.5),
            ),
            local_level=-1,
            projected=1024,
            predicted=512,
        )

    def bank_size(self) -> int:
        """Rows of the bank: `bank`, or a quarter of the captions that the run sees, and never less than a batch."""
        return max(min(self.bank, self.steps * self.batch_size // 4), self.batch_size)


class ImageText(NamedTuple):
    """The networks of Up-A beside its backbone, and the tokenizer."""

    backbone: nn.Module
    tower: TextTower
    heads: ImageTextHeads
    tokenizer: Tokenizer


def _rule(momentum: float, decay: optax.GradientTransformation) -> optimizers.Rule:
    return optimizers.Rule([optax.scale_by_adam(b1=momentum, b2=0.98, eps=1e-8), decay])


def open_tokenizer(spec: UpA, captions: list[str]) -> Tokenizer:
    """The tokenizer that a run uses: that of its start, the given one, or one that is trained on the captions.

    Raises:
      UserError: it cannot be read, or does not match the run to start from.
    """
    length, tokenizer = spec.text.length, None
    if spec.tokenizer is not None:
        path = user_path("up_a.tokenizer", spec.tokenizer)
        if path.is_dir():
            tokenizer = run_tokenizer(spec.tokenizer, argument="up_a.tokenizer")
        else:
            tokenizer = Tokenizer.load(path, length=length, argument="up_a.tokenizer")
    if spec.init_from is not None:
        _, described = _described(user_path("init_from", spec.init_from), "up_a.init_from")
        if tokenizer is None:
            return Tokenizer(described["text"], length=described["length"], argument="up_a.init_from")
        tokenizer.check_same(described["digest"], described["vocabulary"])
        return tokenizer
    return tokenizer or Tokenizer.train(captions, vocabulary=spec.text.vocabulary, length=length)


def run_tokenizer(run: str, *, argument: str = "run") -> Tokenizer:
    """The tokenizer that a run was trained with.

    Raises:
      UserError: no run with a text tower, or a tokenizer beside it that is not the one of its checkpoint.
    """
    return trained_networks(run, argument=argument)[0]


def trained_networks(run: str, *, argument: str = "run") -> tuple[Tokenizer, dict, dict]:
    """(tokenizer, parameters by part, extra) of the newest checkpoint of Up-A in a run.

    Raises:
      UserError: no run with a text tower, or a tokenizer beside it that is not the one of its checkpoint.
    """
    path = user_path(argument, run)
    folder, described = _described(path, argument)
    saved = training.restore_params(folder)
    tokenizer = Tokenizer(described["text"], length=described["length"], argument=argument)
    digest = bytes(np.asarray(saved["extra"]["tokenizer"], np.uint8)).decode()
    tokenizer.check_same(digest, len(saved["params"]["text"]["table"]["embedding"]), argument=argument)
    return tokenizer, saved["params"], saved["extra"]


def _described(run, argument: str) -> tuple[Any, dict[str, Any]]:
    """(folder of the checkpoints of Up-A, what it says of its tokenizer)."""
    found = read_description(run, stage=STAGE)
    described = None if found is None else found[1].get("tokenizer")
    wanted = {"text": str, "length": int, "digest": str, "vocabulary": int}
    if not isinstance(described, dict) or any(
        not isinstance(described.get(name), kind) for name, kind in wanted.items()
    ):
        raise UserError(f"{argument}: needs a run with a stage {STAGE} and its tokenizer, got {run}")
    return found[0], described


def networks(
    spec: UpA, backbone: nn.Module, tokenizer: Tokenizer, *, bfloat16: bool = False, remat: Remat = "none"
) -> ImageText:
    """The networks of Up-A around a backbone in stages (`jaxface.models.staged`).

    Raises:
      UserError: heads that do not divide the token size, or a level that the backbone has not.
    """
    levels, width = backbone.level_channels, None
    if not -len(levels) <= spec.local_level < len(levels):
        raise UserError(f"up_a.local_level: needs one of the {len(levels)} levels, got {spec.local_level}")
    if spec.local_weight > 0:
        width = levels[spec.local_level]
    dtype = jnp.bfloat16 if bfloat16 else jnp.float32
    text = spec.text
    tower = TextTower(
        vocabulary=tokenizer.vocabulary,
        length=tokenizer.length,
        end=tokenizer.end,
        pad=tokenizer.pad,
        features=spec.features,
        dim=text.dim,
        depth=text.depth,
        heads=text.heads,
        causal=text.causal,
        dtype=dtype,
        remat=remat,
    )
    heads = ImageTextHeads(
        features=spec.features,
        vocabulary=tokenizer.vocabulary,
        word_width=text.dim,
        place_width=width,
        projected=spec.projected,
        hidden=spec.predicted,
        dtype=dtype,
    )
    return ImageText(backbone, tower, heads, tokenizer)


def initial(
    nets: ImageText, spec: UpA, rng: jax.Array, image_shape: tuple[int, int, int]
) -> tuple[dict, dict]:
    """Fresh (params, extra): `backbone`, `text` and `heads`; statistics, an empty bank and the tokenizer's digest."""
    keys = jax.random.split(rng, 3)
    image = jnp.zeros((2, *image_shape))
    shown, backbone = nets.backbone.init_with_output(keys[0], image, method=staged)
    tokens = jnp.full((2, nets.tokenizer.length), nets.tokenizer.end, jnp.int32)
    read, text = nets.tower.init_with_output(keys[1], tokens)
    place = None if nets.heads.place_width is None else shown["taps"][spec.local_level]
    heads = nets.heads.init(keys[2], shown["pooled"], read.words, place, train=False)
    params = {"backbone": backbone["params"], "text": text["params"], "heads": heads["params"]}
    digest = np.frombuffer(nets.tokenizer.digest.encode(), np.uint8)
    extra = {
        "batch_stats": backbone.get("batch_stats", {}),
        "heads_stats": heads["batch_stats"],
        "bank": losses.TextBank.empty(spec.bank_size(), spec.features),
        "tokenizer": jnp.asarray(digest),
    }
    return params, extra


def up_a_loss(nets: ImageText, spec: UpA):
    """(params, extra, batch, rng) -> (loss, (extra, metrics)) of a batch of `CaptionViews`."""
    tokenizer = nets.tokenizer

    def loss_fn(params, extra, batch, rng):
        axis = axes.DATA if axes.bound(axes.DATA) else None
        count = len(batch["tokens"])
        stats = extra["heads_stats"]

        def head(method, *arrays, train=None):
            nonlocal stats
            variables = {"params": params["heads"], "batch_stats": stats}
            if train is None:
                return nets.heads.apply(variables, *arrays, method=method)
            result, updated = nets.heads.apply(
                variables, *arrays, train=train, method=method, mutable=["batch_stats"]
            )
            stats = updated["batch_stats"]
            return result

        def pair(x):
            """Rows of view 1 and of view 2 of [2 B, …], which lie side by side so that a device keeps its own."""
            return tuple(x.reshape(count, 2, *x.shape[1:])[:, i] for i in range(2))

        # Two views of the image through the backbone, together.
        mask_key, drop_key = jax.random.split(rng)
        images = batch["image"].reshape(2 * count, *batch["image"].shape[2:])
        shown, updated = nets.backbone.apply(
            training.network_variables(params["backbone"], extra),
            images,
            train=True,
            method=staged,
            mutable=["batch_stats"],
            rngs={"dropout": drop_key},
        )
        pooled = shown["pooled"]
        # The masked caption serves the contrast and the masked words; the changed one is whole.
        masked = losses.mask_tokens(
            mask_key,
            batch["tokens"],
            vocabulary=tokenizer.vocabulary,
            mask_token=tokenizer.mask,
            special=tokenizer.special,
            rate=spec.mask_rate,
        )
        read = jnp.stack([masked.tokens, batch["changed_tokens"]], axis=1).reshape(2 * count, -1)
        text = nets.tower.apply({"params": params["text"]}, read, train=True)
        predicted, projected = head("views", pooled, train=True)
        embedded = l2_normalize(head("images", pooled))
        outputs = losses.DeclipOutputs(
            images=pair(embedded),
            texts=pair(l2_normalize(text.sentences)),
            predicted=pair(predicted),
            projected=pair(projected),
            word_logits=head("words", pair(text.words)[0]),
            words=batch["tokens"],
            masked=masked.mask,
            logit_scale=head("logit_scale"),
        )
        loss, terms, bank = losses.declip_loss(outputs, extra["bank"], weights=spec.weights, axis_name=axis)
        report = {f"{name}_loss": value for name, value in terms.items()}
        # Places of one view that show what places of the other do.
        if spec.local_weight > 0:
            level = shown["taps"][spec.local_level]
            guesses, level = pair(head("places", level, train=True)), pair(level)
            windows = batch["window"][:, 0], batch["window"][:, 1]
            grids = [losses.view_grid(window, level[0].shape[1:3]) for window in windows]
            both = [losses.pixpro_loss(guesses[i], level[1 - i], grids[i], grids[1 - i]) for i in range(2)]
            report["places_loss"] = sum(jnp.mean(one) for one in both) / 2
            loss = loss + spec.local_weight * report["places_loss"]
        # 1 where features spread over the sphere, 0 where they have collapsed.
        spread = jnp.std(l2_normalize(projected.astype(jnp.float32)), axis=0).mean()
        report["spread"] = spread * projected.shape[-1] ** 0.5
        report["logit_scale"] = outputs.logit_scale
        scores = outputs.images[0] @ outputs.texts[1].T
        report["accuracy"] = jnp.mean(jnp.argmax(scores, axis=1) == jnp.arange(count))
        extra = {**extra, **updated, "heads_stats": stats, "bank": bank}
        return loss, (extra, jax.lax.stop_gradient(report))

    return loss_fn


def clamped(step, spec: UpA):
    """A step after which θ lies in `clamp`."""

    def run(state, batch):
        state, metrics = step(state, batch)
        heads = state.params["heads"]
        theta = jnp.clip(heads["logit_scale"], *spec.clamp)
        params = {**state.params, "heads": {**heads, "logit_scale": theta}}
        return state.replace(params=params), metrics

    return run


def up_a_training(
    spec: UpA,
    nets: ImageText,
    image_shape: tuple[int, int, int],
    *,
    start: tuple[dict, dict] | None = None,
    accumulate: int = 1,
) -> tuple[Callable, Callable]:
    """(init, step) of the stage, which open no data; `start` is (params, extra) of a finished one."""
    rule = _rule if spec.optimizer.name == "adamw" else None
    optimizer = spec.optimizer.build(spec.steps, rule, network=("backbone", nets.backbone))
    objective = training.Objective(up_a_loss(nets, spec), optimizer)

    def init(rng, previous):
        params, extra = initial(nets, spec, rng, image_shape)
        if start is not None:
            params = start[0]
            extra = {**extra, **{name: start[1][name] for name in ("batch_stats", "heads_stats")}}
        return training.create_state(rng, params, objective, extra=extra)

    return init, clamped(training.gradient_step(objective, accumulate=accumulate), spec)


class _WithTokenizer:
    """Batches whose position says which tokenizer made them, so that a run resumes with no other."""

    def __init__(self, batches: inputs.Batches, tokenizer: Tokenizer):
        self._batches, self._tokenizer = batches, tokenizer

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        known = {"digest": self._tokenizer.digest, "vocabulary": self._tokenizer.vocabulary}
        return {**self._batches.get_state(), "tokenizer": known}

    def set_state(self, state: dict[str, Any]) -> None:
        known = state.get("tokenizer") or {"digest": "none", "vocabulary": 0}
        self._tokenizer.check_same(known["digest"], known["vocabulary"])
        self._batches.set_state(state)

    def close(self) -> None:
        self._batches.close()


def up_a_stage(
    spec: UpA,
    backbone: nn.Module,
    split: inputs.Split,
    *,
    seed: int = 0,
    workers: int = 0,
    bfloat16: bool = False,
    remat: Remat = "none",
    accumulate: int = 1,
) -> tuple[training.Stage, ImageText]:
    """The stage `up_a`, whose state has the backbone under `params["backbone"]` and `extra["batch_stats"]`.

    Args:
      spec: of the stage.
      backbone: network in stages, of `jaxface.models.staged`.
      split: records with captions.
      seed: of the order of the data and its views. workers: processes that make them.
      bfloat16: computes in it; parameters, statistics and losses stay float32.
      remat, accumulate: memory for time; micro-batches contrast less pairs with each other.

    Returns:
      (the stage, its networks).

    Raises:
      UserError: images without captions, a tokenizer that does not match, or sizes that do not fit each other.
    """
    check_fields(spec, "up_a.")
    captions = getattr(split.train, "captions", None)
    if captions is None:
        raise UserError(f"data: needs images with captions, such as captioned_faces; got {split.name}")
    tokenizer = open_tokenizer(spec, captions)
    nets = networks(spec, backbone, tokenizer, bfloat16=bfloat16, remat=remat)
    shape = split.train.image_shape
    start = None
    if spec.init_from is not None:
        _, *start = trained_networks(spec.init_from, argument="up_a.init_from")
        check_same_networks(
            start[0], jax.eval_shape(lambda: initial(nets, spec, jax.random.key(0), shape))[0]
        )
    init, step = up_a_training(spec, nets, shape, start=start, accumulate=accumulate)
    views = CaptionViews(tokenizer, spec.views, SYNONYMS)

    def open_batches():
        batches = inputs.batches(
            split.train,
            batch_size=spec.batch_size,
            seed=seed,
            augment=views,
            shard=(jax.process_index(), jax.process_count()),
            workers=workers,
        )
        return _WithTokenizer(batches, tokenizer)

    open_batches()  # reads nothing yet, but refuses what cannot be used
    stage = training.Stage(
        STAGE,
        init=init,
        step=step,
        batches=lambda state: open_batches(),
        steps=spec.steps,
        evaluate=CaptionRetrieval(nets.backbone, nets.tower, nets.heads, tokenizer, split.held_out),
        best="retrieval/image_to_text",
        compile_init=start is None,
        description=description(nets, split),
    )
    return stage, nets


def description(nets: ImageText, split: inputs.Split) -> dict[str, Any]:
    """What the stage says of its state: the backbone as a recognizer, and the tokenizer."""
    tokenizer = nets.tokenizer
    described = inference.recognizer_description(
        nets.backbone, split.train.image_shape, alignment=None, origin=f"trained on {split.name}"
    )
    return described | {
        "tokenizer": {
            "text": tokenizer.text,
            "length": tokenizer.length,
            "digest": tokenizer.digest,
            "vocabulary": tokenizer.vocabulary,
        }
    }


def check_same_networks(params: dict, wanted: dict) -> None:
    """Raises UserError where a run to start from has other networks; names the first leaf that differs."""
    shapes = [
        {
            jax.tree_util.keystr(p, simple=True, separator="/"): jnp.shape(x)
            for p, x in jax.tree.leaves_with_path(t)
        }
        for t in (params, wanted)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        saved, needed = (leaves.get(name, "nothing") for leaves in shapes)
        if saved != needed:
            raise UserError(f"up_a.init_from: has other networks, {name} is {saved} there and {needed} here")
