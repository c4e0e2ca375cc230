"""Evaluation of a video codec: every clip from its first frame on, each frame told from the decoded one before it.

Methods: edic
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.models.compression import EDIC
from jaxface.models.compression.video import DVC
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.evaluations.rate_distortion import to_fractions
from jaxface.training.map_source import map_source
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

_DRAWN = 3  # clips


class VideoRateDistortion:
    """Rate and distortion of clips under rounding, references of whole levels as a decoder has them; means over clips.

    Reported of predicted frames are `video/loss`, λ MSE + bpp; `video/bpp` and of it `video/bpp_motion`; `video/psnr`;
    `video/psnr_warped` and `video/psnr_predicted`, before the residual. `video/intra_loss` is that of the same frames coded as
    pictures; `video/gop_bpp` and `video/gop_psnr` are of whole clips, first frames included.

    Args:
      network: of predicted frames.
      intra: of first frames.
      source: clips.
      weight: λ.
      batch_size: clips at a time.
    """

    def __init__(self, network: DVC, intra: EDIC, source: Source, weight: float, *, batch_size: int = 20):
        check_not_empty(source)
        self.network, self.intra, self.source = network, intra, source
        self.weight, self.batch_size = weight, batch_size

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = {"video": state.averaged_params["video"], "codec": state.extra["codec"]}
        measure = functools.partial(_measure, network=self.network, intra=self.intra)
        size = min(self.batch_size, len(self.source))
        told = map_source(measure, self.source, params, batch_size=size, fields=("frames",))
        predicted = {name: values[:, 1:] for name, values in told.items()}
        bpp = predicted["bpp"] + predicted["bpp_motion"]
        whole = np.concatenate([told["intra_bpp"][:, :1], bpp], axis=1)
        quality = np.concatenate([told["intra_psnr"][:, :1], predicted["psnr"]], axis=1)
        report = {
            "video/loss": self.weight * predicted["mse"] + bpp,
            "video/bpp": bpp,
            "video/bpp_motion": predicted["bpp_motion"],
            "video/psnr": predicted["psnr"],
            "video/psnr_warped": predicted["psnr_warped"],
            "video/psnr_predicted": predicted["psnr_predicted"],
            "video/intra_loss": self.weight * predicted["intra_mse"] + predicted["intra_bpp"],
            "video/gop_bpp": whole,
            "video/gop_psnr": quality,
        }
        return {name: float(values.mean()) for name, values in report.items()}

    def figures(self, state: TrainState) -> Figures:
        """Some clips, and what the codec makes of them."""
        count = min(_DRAWN, len(self.source))
        frames = np.stack([self.source[i]["frames"] for i in range(count)])
        params = {"video": state.averaged_params["video"], "codec": state.extra["codec"]}
        decoded = np.asarray(_decoded(params, jnp.asarray(frames), network=self.network, intra=self.intra))
        rows = {"frames": np.concatenate(frames), f"λ = {self.weight:g}": np.concatenate(decoded)}
        return {"clips": functools.partial(figures.save_image_rows, rows)}


def _levels(image: jax.Array) -> jax.Array:
    """The nearest of 256 levels, as fractions."""
    return jnp.round(jnp.clip(image, 0, 1) * 255) / 255


def _error(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.square(a - b).mean((1, 2, 3))


def _psnr(a: jax.Array, b: jax.Array) -> jax.Array:
    return -10 * jnp.log10(jnp.maximum(_error(_levels(a), b), 1e-10))


def _frames(params, frames: jax.Array, network: DVC, intra: EDIC):
    """What is told of every frame after the first, and the decoded frames."""
    decoded = [_levels(intra.apply({"params": params["codec"]}, frames[:, 0])["x_rec"])]
    told = []
    for number in range(1, frames.shape[1]):
        told.append(network.apply({"params": params["video"]}, frames[:, number], decoded[-1]))
        decoded.append(_levels(told[-1]["x_rec"]))
    return told, decoded


@functools.partial(jax.jit, static_argnames=("network", "intra"))
def _measure(params, batch, *, network: DVC, intra: EDIC):
    frames = to_fractions(normalize_pixels(batch["frames"]))
    pixels = frames.shape[2] * frames.shape[3]
    told, _ = _frames(params, frames, network, intra)
    rows = []
    for number in range(frames.shape[1]):
        frame, alone = frames[:, number], intra.apply({"params": params["codec"]}, frames[:, number])
        row = {
            "intra_bpp": (alone["bits_y"] + alone["bits_z"]) / pixels,
            "intra_mse": _error(alone["x_rec"], frame),
            "intra_psnr": _psnr(alone["x_rec"], frame),
        }
        nothing = jnp.zeros(len(frame))
        if number == 0:
            names = ("bpp", "bpp_motion", "mse", "psnr", "psnr_warped", "psnr_predicted")
            row |= dict.fromkeys(names, nothing)
        else:
            now = told[number - 1]
            row |= {
                "bpp": (now["bits_y"] + now["bits_z"]) / pixels,
                "bpp_motion": now["bits_m"] / pixels,
                "mse": _error(now["x_rec"], frame),
                "psnr": _psnr(now["x_rec"], frame),
                "psnr_warped": _psnr(now["warped"], frame),
                "psnr_predicted": _psnr(now["prediction"], frame),
            }
        rows.append(row)
    return jax.tree.map(lambda *values: jnp.stack(values, axis=1), *rows)


@functools.partial(jax.jit, static_argnames=("network", "intra"))
def _decoded(params, frames, *, network: DVC, intra: EDIC):
    _, decoded = _frames(params, to_fractions(normalize_pixels(frames)), network, intra)
    return jnp.round(jnp.stack(decoded, axis=1) * 255).astype(jnp.uint8)
