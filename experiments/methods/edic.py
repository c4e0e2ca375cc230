"""EDIC: an image codec with mixtures, channel attention and a decoder-side enhancer, and real files (arXiv:2002.03370).

    python -m experiments.launch edic --workdir runs/edic                # 123 CPU-seconds: 2.04 bits per pixel, 21.4 dB
    python -m experiments.launch edic --preset photographs --workdir runs/photographs   # a ladder of rates for real pictures
    python -m experiments.launch edic --preset paper --data.root … --workdir runs/paper # built and typed, not trained here
    jaxface compress encode IN.png OUT.edic --run runs/photographs

Differs from the paper in: of its three parts no code was published, so that widths, places and starts of attention, mixture and
enhancer are ours; the rate is computed in logarithms; files are coded in whole numbers (docs/methods/edic.md#choices-of-ours).
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.recipes.video import PredictionSpec, check_clips, prediction_stage
from jaxface import data as inputs
from jaxface import inference, losses, training
from jaxface.checks import AtLeast, Positive
from jaxface.errors import UserError
from jaxface.models.compression import EDIC, CodecSpec, equal_macs
from jaxface.models.compression.video import VideoSpec
from jaxface.training.evaluations.rate_distortion import to_fractions

LAPTOP = CodecSpec(
    channels=12, latents=16, attention=None, enhancer_width=8, enhancer_blocks=3, halvings=2, hyper_halvings=1
)
"""A codec of two stages, 4 pixels to a latent, for images of 32 pixels."""
SMALL_VIDEO = VideoSpec(
    residual=dataclasses.replace(LAPTOP, enhance=False),
    enhance=True,
    levels=3,
    flow_widths=(8, 8, 2),
    motion_channels=16,
    compensation_width=8,
    enhancer_width=8,
    enhancer_blocks=1,
)
"""DVC with EDIC's mixture and enhancer, small."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A codec trained for one weight of the distortion, and from it those for others."""

    data: inputs.DataSpec = inputs.DeadLeaves()
    """Color images to learn from; others are kept to evaluate on."""
    image_size: Annotated[int, AtLeast(8)] = 32
    """Side of the training images, pixels; a multiple of the network's stride."""
    codec: CodecSpec = LAPTOP
    """The network; every part of it is a switch."""
    equal_macs: bool = False
    """Instead of the enhancer a wider decoder of as many multiply-accumulates: its control, which was better in five seeds."""
    log_space: bool = True
    """The rate of the latents in logarithms, which keeps a slope far from every component; else from probabilities."""
    weight: Annotated[float, Positive] = 512.0
    """λ > 0 of λ MSE + bpp with pixels in [0, 1]; with MS-SSIM of λ (1 - MS-SSIM) + bpp."""
    ladder: Annotated[tuple[float, ...], Positive] = ()
    """Further λ, each of whose codecs starts from the one before it."""
    distortion: Literal["mse", "ms_ssim"] = "mse"
    """Error that is traded for bits; ms_ssim needs images of 161 pixels or more."""
    init_from: str | None = None
    """A run or the file of a codec of the same network to start from, as those for MS-SSIM start from those for MSE."""
    optimizer: training.Optimizer = training.adam(4e-3, schedule="step", decay_at=(0.8,))
    """Optimizer of the first λ."""
    ladder_optimizer: training.Optimizer = training.adam(1e-3, schedule="step", decay_at=(0.8,))
    """Optimizer of the others."""
    clamp: Annotated[float | None, Positive] = 5.0
    """Largest entry of a gradient, element by element; None for none."""
    vertical_flip: bool = True
    """Images are turned upside down half of the time, besides `augment`."""
    augment: inputs.Augment = inputs.Augment()
    """Random changes of the training images."""
    batch_size: Annotated[int, AtLeast(1)] = 8
    """Images per step over all devices."""
    steps: Annotated[int, AtLeast(0)] = 1500
    """Training steps of the first λ."""
    ladder_steps: Annotated[int, AtLeast(0)] = 500
    """Training steps of each of the others."""
    prediction: PredictionSpec = PredictionSpec()
    """With steps: a video codec for the first λ behind it, whose frames but the first are told from the one before (DVC)."""
    files: Annotated[int, AtLeast(0)] = 64
    """Held-out images that are written to a file, side by side, whenever the codec is evaluated; 0 for none."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that read and augment; 0 uses threads."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of the initialization, the order of the data and the noise."""
    data_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of drawn images, of patches and of the split."""

    @classmethod
    def paper(cls) -> "Config":
        """The low rates, λ = 2048 from scratch and 1024, 512 and 256 from it: 128 channels, 192 latents, patches of 256 pixels.

        As the released scale hyperprior is trained: about 20,000 photographs of Flickr, 2.5 million steps of 4 patches, then
        500,000 for each further λ. The high rates: `--codec.channels 192 --codec.latents 320 --weight 8192 --ladder 6144 4096`.
        """
        return cls(
            data=inputs.Patches(root="flickr", per_photograph=1 << 16, held_out=0.01),
            image_size=256,
            codec=CodecSpec(),
            weight=2048.0,
            ladder=(1024.0, 512.0, 256.0),
            optimizer=training.adam(1e-4, schedule="step", decay_at=(2.2 / 2.5,)),
            ladder_optimizer=training.adam(1e-5, schedule="constant"),
            batch_size=4,
            steps=2_500_000,
            ladder_steps=500_000,
            workers=8,
        )

    @classmethod
    def photographs(cls) -> "Config":
        """Real pictures: patches of bundled photographs, 16 pixels to a latent, four rates."""
        return cls(
            data=inputs.Patches(),
            image_size=64,
            codec=CodecSpec(
                channels=32, latents=48, attention=None, enhancer_width=8, halvings=3, hyper_halvings=2
            ),
            weight=1024.0,
            ladder=(512.0, 256.0, 128.0),
            batch_size=4,
            steps=1500,
            ladder_steps=250,
        )

    @classmethod
    def video(cls) -> "Config":
        """DVC with EDIC's mixture and enhancer on clips of moving leaves."""
        return cls(
            data=inputs.MovingLeaves(),
            prediction=PredictionSpec(network=SMALL_VIDEO, steps=400),
            steps=400,
            batch_size=4,
            files=0,
        )


def check(config: Config) -> None:
    """Raises UserError for what can be refused before any data is opened."""
    if config.image_size % config.codec.multiple:
        raise UserError(
            f"image_size: needs a multiple of {config.codec.multiple}, the stride of this network, got {config.image_size}"
        )
    if config.distortion == "ms_ssim" and config.image_size < 161:
        raise UserError(f"image_size: MS-SSIM needs at least 161 pixels, got {config.image_size}")
    if config.equal_macs and not config.codec.enhance:
        raise UserError(
            "equal_macs: needs a codec with an enhancer, whose cost the wider decoder has; codec.enhance is False"
        )
    if config.prediction.steps and config.ladder:
        raise UserError("ladder: needs no prediction.steps; a video codec is trained for one weight")
    names = [stage_name(weight) for weight in (config.weight, *config.ladder)]
    if len(set(names)) < len(names):
        raise UserError("ladder: needs weights that differ from each other and from weight")


def stage_name(weight: float) -> str:
    """`rate_512` of λ = 512."""
    return f"rate_{weight:g}".replace(".", "_").replace("+", "").replace("-", "_")


def network(config: Config) -> EDIC:
    """The network of a configuration."""
    spec = equal_macs(config.codec) if config.equal_macs else config.codec
    return EDIC(spec, log_space=config.log_space)


def build(config: Config) -> list[training.Stage]:
    """A stage for every λ, each from the codec of the one before it."""
    check(config)
    split = inputs.load(config.data, image_size=config.image_size, seed=config.data_seed)
    shape = tuple(split.train.image_shape)
    if shape[2] != 3 or shape[0] % config.codec.multiple or shape[1] % config.codec.multiple:
        raise UserError(
            f"data: needs color images with sides of multiples of {config.codec.multiple}, {split.name} has {shape}"
        )
    model = network(config)
    start = None if config.init_from is None else inference.open_codec(config.init_from)
    if start is not None and start.spec != model.spec:
        raise UserError(f"init_from: needs a codec of the same network, {config.init_from} has another")
    if config.prediction.steps:
        check_clips(split, config.prediction)
    stages = []
    for number, weight in enumerate((config.weight, *config.ladder)):
        stages.append(rate_stage(config, model, split, weight, first=number == 0, start=start))
    if config.prediction.steps:
        stages.append(
            prediction_stage(
                f"video_{stage_name(config.weight)[5:]}", config.prediction, model, split, config.weight,
                batch_size=config.batch_size, seed=config.seed, workers=config.workers, log_space=config.log_space,
                origin=f"trained on {config.data.title}",
            )
        )  # fmt: skip
    return stages


def rate_stage(
    config: Config,
    model: EDIC,
    split: inputs.Split,
    weight: float,
    *,
    first: bool,
    start: inference.Codec | None,
) -> training.Stage:
    """The codec of one λ, fresh or from that of the stage before it."""
    steps = config.steps if first else config.ladder_steps
    rule = (config.optimizer if first else config.ladder_optimizer).build(max(steps, 1))
    if config.clamp is not None:
        rule = optax.chain(optax.clip(config.clamp), rule)

    # L = λ D + R, the latents with noise instead of rounded.
    def loss_fn(params, extra, batch, rng):
        of_flip, of_noise = jax.random.split(rng)
        image = to_fractions(batch["image"])
        if config.vertical_flip:
            turned = jax.random.bernoulli(of_flip, shape=(len(image), 1, 1, 1))
            image = jnp.where(turned, image[:, ::-1], image)
        told = model.apply({"params": params["codec"]}, image, rng=of_noise)
        bits = (told["bits_y"] + told["bits_z"]).sum()
        loss, report = losses.rd_loss(image, told["x_rec"], bits, weight=weight, distortion=config.distortion)
        return loss, (extra, report)

    objective = training.Objective(loss_fn, rule)

    def init(rng, previous):
        if not first:
            params = previous.params
        elif start is not None:
            params = {"codec": jax.tree.map(jnp.asarray, start.params)}
        else:
            params = {"codec": model.init(rng, jnp.zeros((1, *split.train.image_shape)))["params"]}
        return training.create_state(rng, params, objective)

    def open_batches():
        return inputs.batches(
            split.train,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config.augment,
            shard=(jax.process_index(), jax.process_count()),
            workers=config.workers,
        )

    open_batches()  # reads nothing yet, but refuses what cannot be used
    return training.Stage(
        name=stage_name(weight),
        key="edic" if first else None,
        init=init,
        compile_init=start is None,
        step=training.gradient_step(objective),
        batches=lambda state: open_batches(),
        steps=steps,
        evaluate=training.RateDistortion(
            model, split.held_out, weight, distortion=config.distortion, files=config.files
        ),
        description=inference.codec_description(model.spec, weight, origin=f"trained on {config.data.title}"),
    )
