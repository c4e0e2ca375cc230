"""DVC: a video codec of networks, in which EDIC's image codec stands for the residual's (arXiv:1812.00101, arXiv:2002.03370).

A frame is told from the one decoded before it: an optical flow is found, coded and decoded; the frame before is warped by it and
mended; what is left is coded as a picture is.

Methods: edic
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.checks import AtLeast, check_number
from jaxface.errors import UserError
from jaxface.layers.edic import Enhancer, FactorizedPrior
from jaxface.layers.gdn import lower_bound
from jaxface.layers.motion import WIDTHS, FlowPyramid, warp
from jaxface.layers.one_draw import kernel, near_zero
from jaxface.losses.edic import LEAST_PROBABILITY
from jaxface.models.compression.networks import CENTERED, EDIC, CodecSpec, quantize

_LEAK = 0.1
_HALVINGS = 4  # of a flow

Prediction = Literal["motion", "previous"]


@dataclasses.dataclass(frozen=True)
class VideoSpec:
    """The network of predicted frames; hashable, and JSON-like through `dataclasses.asdict`."""

    residual: CodecSpec = CodecSpec(channels=64, latents=96, entropy="laplace", attention=None, enhance=False)
    """Codec of what a prediction leaves; that of the published port unless given."""
    prediction: Prediction = "motion"
    """From the frame before along a coded flow, or the frame before as it is."""
    compensate: bool = True
    """A network mends the warped frame."""
    enhance: bool = False
    """A network refines the decoded frame before the next one sees it."""
    levels: int = 4
    """Levels of the flow's pyramid."""
    flow_widths: tuple[int, ...] = WIDTHS
    """Channels of a level, the last of them 2."""
    motion_channels: int = 128
    """Channels of the flow's codec."""
    compensation_width: int = 64
    """Channels of the network that mends."""
    enhancer_width: int = 64
    """Channels of the network that refines."""
    enhancer_blocks: int = 3
    """Its residual blocks."""

    def __post_init__(self):
        for name in ("levels", "motion_channels", "compensation_width", "enhancer_width"):
            check_number(name, getattr(self, name), AtLeast(1))
        if self.prediction not in ("motion", "previous"):
            raise UserError(f"prediction: needs motion or previous, got {self.prediction!r}")
        if len(self.flow_widths) < 1 or self.flow_widths[-1] != 2:
            raise UserError(f"flow_widths: needs 2 channels at the end, got {self.flow_widths}")

    @property
    def multiple(self) -> int:
        """Sides of a frame are multiples of it."""
        flow = max(2 ** (self.levels - 1), 2**_HALVINGS) if self.prediction == "motion" else 1
        return max(self.residual.multiple, flow)


class MotionEncoder(nn.Module):
    """A flow as latents at a sixteenth of the size."""

    channels: int

    @nn.compact
    def __call__(self, flow: jax.Array) -> jax.Array:
        """[B, H, W, 2] -> [B, H/16, W/16, C]."""
        x = flow
        for i in range(1, 2 * _HALVINGS + 1):
            stride = 2 if i % 2 else 1
            x = nn.Conv(
                self.channels, (3, 3), (stride, stride), ((1, 1), (1, 1)), kernel_init=kernel, name=f"conv{i}"
            )(x)
            x = nn.leaky_relu(x, _LEAK) if i < 2 * _HALVINGS else x
        return x


class MotionDecoder(nn.Module):
    """The inverse."""

    channels: int

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """[B, h, w, C] -> flow [B, 16 h, 16 w, 2]."""
        x = latents
        for i in range(1, _HALVINGS + 1):
            x = nn.ConvTranspose(
                self.channels, (3, 3), (2, 2), ((1, 2), (1, 2)), kernel_init=kernel, name=f"deconv{i}"
            )(x)
            x = nn.leaky_relu(x, _LEAK)
            last = i == _HALVINGS
            start, width = (near_zero, 2) if last else (kernel, self.channels)
            x = nn.Conv(width, (3, 3), padding="SAME", kernel_init=start, name=f"conv{i}")(x)
            x = x if last else nn.leaky_relu(x, _LEAK)
        return x


def _doubled(x: jax.Array) -> jax.Array:
    """Twice the size, bilinear with the corners on the corners."""
    for axis in (1, 2):
        size = x.shape[axis]
        at = jnp.linspace(0, size - 1, 2 * size)
        low = jnp.clip(jnp.floor(at), 0, max(size - 2, 0)).astype(jnp.int32)
        part = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        high = jnp.minimum(low + 1, size - 1)
        x = jnp.take(x, low, axis=axis) * (1 - part) + jnp.take(x, high, axis=axis) * part
    return x


class Compensation(nn.Module):
    """What mends a warped frame: x̄ = w + U([w, reference]), U a small network over three sizes."""

    width: int

    @nn.compact
    def __call__(self, warped: jax.Array, reference: jax.Array) -> jax.Array:
        """[B, H, W, 3] twice -> [B, H, W, 3]."""

        def block(x, name):
            y = nn.Conv(self.width, (3, 3), padding="SAME", kernel_init=kernel, name=f"{name}_conv1")(
                nn.relu(x)
            )
            return x + nn.Conv(self.width, (3, 3), padding="SAME", kernel_init=kernel, name=f"{name}_conv2")(
                nn.relu(y)
            )

        both = jnp.concatenate([warped, reference], axis=-1)
        x = nn.relu(nn.Conv(self.width, (3, 3), padding="SAME", kernel_init=kernel, name="first")(both))
        fine = block(x, "block0")
        middle = block(nn.avg_pool(fine, (2, 2), (2, 2)), "block1")
        coarse = block(block(nn.avg_pool(middle, (2, 2), (2, 2)), "block2"), "block3")
        middle = block(middle + _doubled(coarse), "block4")
        fine = block(fine + _doubled(middle), "block5")
        return warped + nn.Conv(3, (3, 3), padding="SAME", kernel_init=near_zero, name="last")(fine)


class DVC(nn.Module):
    """A predicted frame, from the one decoded before it.

    Attributes:
      spec: the network.
      log_space: as in `EDIC`.
    """

    spec: VideoSpec = VideoSpec()
    log_space: bool = True

    def setup(self):
        spec = self.spec
        if spec.prediction == "motion":
            self.flow = FlowPyramid(spec.levels, spec.flow_widths)
            self.motion_encoder = MotionEncoder(spec.motion_channels)
            self.motion_decoder = MotionDecoder(spec.motion_channels)
            self.motion_prior = FactorizedPrior(spec.motion_channels)
            if spec.compensate:
                self.compensation = Compensation(spec.compensation_width)
        self.residual = EDIC(spec.residual, self.log_space)
        if spec.enhance:
            self.enhancer = Enhancer(spec.enhancer_width, spec.enhancer_blocks)

    def estimate(self, frame: jax.Array, reference: jax.Array) -> jax.Array:
        """Flow [B, H, W, 2] that warps the reference to the frame, not coded."""
        return self.flow(frame, reference)

    def encode_motion(self, frame: jax.Array, reference: jax.Array) -> jax.Array:
        """Latents of the flow, not rounded; a codec without motion has none to give."""
        return self.motion_encoder(self.flow(frame, reference))

    def predict(self, motion: jax.Array | None, reference: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(warped reference, prediction) from the flow's latents; the reference twice where there is no motion."""
        if motion is None:
            return reference, reference
        warped = warp(reference, self.motion_decoder(motion))
        return warped, self.compensation(warped, reference) if self.spec.compensate else warped

    def analyze(self, residual: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(y, z) of what a prediction leaves, not rounded."""
        return self.residual.analyze(residual)

    def complete(self, prediction: jax.Array, y_hat: jax.Array) -> jax.Array:
        """The decoded frame, not clipped."""
        decoded = prediction + self.residual.synthesize(y_hat)
        return self.enhancer(decoded) if self.spec.enhance else decoded

    def __call__(
        self, frame: jax.Array, reference: jax.Array, *, rng: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """A frame through the codec.

        Args:
          frame: [B, H, W, 3] in [0, 1], sides multiples of `spec.multiple`.
          reference: [B, H, W, 3], the frame decoded before, clipped.
          rng: key of the noise of training; None rounds.

        Returns:
          {"x_rec" [B, H, W, 3] not clipped; "aligned" and "warped", the reference along the flow before and after it is coded;
          "prediction"; "bits_m", "bits_y", "bits_z" [B]}.

        Raises:
          ValueError: frames of two shapes, or sides that are no multiples.
        """
        if frame.shape != reference.shape or any(side % self.spec.multiple for side in frame.shape[1:3]):
            raise ValueError(
                f"reference: needs the frame's shape, sides multiples of {self.spec.multiple}, "
                f"got {reference.shape} and {frame.shape}"
            )
        keys = (None,) * 3 if rng is None else tuple(jax.random.split(rng, 3))
        motion, bits_m, aligned = None, jnp.zeros(len(frame)), reference
        if self.spec.prediction == "motion":
            flow = self.flow(frame, reference)
            aligned = warp(reference, flow)
            motion = quantize(self.motion_encoder(flow), keys[0])
            prob = lower_bound(self.motion_prior(motion), LEAST_PROBABILITY)
            bits_m = -jnp.log2(prob).sum((1, 2, 3))
        warped, prediction = self.predict(motion, reference)
        y, z = self.analyze(frame - prediction)
        z_hat = quantize(z, keys[1])
        if self.spec.residual.entropy in CENTERED and rng is None:
            parameters = self.residual.parameters(z_hat)
            y_hat = jnp.round(y - parameters.mu[..., 0]) + parameters.mu[..., 0]
        else:
            y_hat = quantize(y, keys[2])
            parameters = self.residual.parameters(z_hat, y_hat)
        bits_y = self.residual.latent_bits(y_hat, parameters, training=rng is not None)
        bits_z = -jnp.log2(lower_bound(self.residual.prior(z_hat), LEAST_PROBABILITY))
        return {
            "x_rec": self.complete(prediction, y_hat),
            "aligned": aligned,
            "warped": warped,
            "prediction": prediction,
            "bits_m": bits_m,
            "bits_y": bits_y.sum((1, 2, 3)),
            "bits_z": bits_z.sum((1, 2, 3)),
        }


def video_from_description(described: Any) -> VideoSpec:
    """The inverse of `dataclasses.asdict`.

    Raises:
      UserError: something else.
    """
    from jaxface.models.compression.networks import from_description

    names = {field.name for field in dataclasses.fields(VideoSpec)}
    if not isinstance(described, dict) or described.keys() != names:
        raise UserError(f"network: needs fields of a video codec, {', '.join(sorted(names))}")
    widths = described["flow_widths"]
    if not isinstance(widths, list | tuple) or not all(type(width) is int for width in widths):
        raise UserError(f"network: flow_widths cannot be {widths!r}")
    default = VideoSpec()
    for name, value in described.items():
        if name not in ("residual", "flow_widths") and type(value) is not type(getattr(default, name)):
            raise UserError(f"network: {name} cannot be {value!r}")
    return VideoSpec(
        **{**described, "residual": from_description(described["residual"]), "flow_widths": tuple(widths)}
    )
