"""Evaluation of a learned codec: what it costs in bits and in errors, and what its files are.

Methods: edic
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.source import Source
from jaxface.data.transforms.pixels import normalize_pixels
from jaxface.metrics.image import decibels, ms_ssim
from jaxface.models.compression import EDIC, make_codec
from jaxface.training import figures
from jaxface.training.evaluations.needs import check_not_empty
from jaxface.training.map_source import map_source
from jaxface.training.stages import Figures
from jaxface.training.step import TrainState

_DRAWN = 8
_LARGE = 161  # sides from which MS-SSIM is defined


def to_fractions(image: jax.Array) -> jax.Array:
    """Pixels in [-1, 1] as fractions of white in [0, 1]."""
    return (image + 1) / 2


class RateDistortion:
    """Rate and distortion of a codec under rounding, means over images.

    Reported are `codec/loss`, λ MSE + bpp (with MS-SSIM λ (1 - MS-SSIM) + bpp); `codec/bpp` and `codec/bpp_z`, estimated bits per
    pixel and the hyperprior's share of them; `codec/mse` of the picture before it is clipped; `codec/psnr` of its bytes;
    `codec/ms_ssim_db` where sides allow; `codec/silent`, latent channels that are 0 everywhere; and of a file with `files` images
    side by side `file/bpp` with its header, `file/psnr`, and `file/excess`, its bytes over the estimate, less 1.

    Args:
      network: the codec's network.
      source: color images.
      weight: λ.
      distortion: of the loss.
      batch_size: images at a time.
      files: images of the file, as many as make a square; 0 for none.
    """

    def __init__(
        self,
        network: EDIC,
        source: Source,
        weight: float,
        *,
        distortion: str = "mse",
        batch_size: int = 50,
        files: int = 64,
    ):
        check_not_empty(source)
        check_number("files", files, AtLeast(0))
        self.network, self.source, self.weight = network, source, weight
        self.distortion, self.batch_size, self.files = distortion, batch_size, files

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = state.averaged_params["codec"]
        measure = functools.partial(_measure, network=self.network)
        told = map_source(measure, self.source, params, batch_size=min(self.batch_size, len(self.source)))
        distortion = 1 - told["ms_ssim"] if self.distortion == "ms_ssim" else told["mse"]
        bpp = told["bpp_y"] + told["bpp_z"]
        report = {
            "codec/loss": (self.weight * distortion + bpp).mean(),
            "codec/bpp": bpp.mean(),
            "codec/bpp_z": told["bpp_z"].mean(),
            "codec/mse": told["mse"].mean(),
            "codec/psnr": told["psnr"].mean(),
            "codec/silent": (told["active"] == 0).all(0).sum(),
        }
        if "ms_ssim" in told:
            report["codec/ms_ssim_db"] = np.mean([decibels(float(value)) for value in told["ms_ssim"]])
        if self.files:
            report |= self._file(params)
        return {name: float(value) for name, value in report.items()}

    def _file(self, params) -> dict[str, float]:
        side = math.isqrt(min(self.files, len(self.source)))
        images = np.stack([self.source[i]["image"] for i in range(side * side)])
        rows = images.reshape(side, side, *images.shape[1:]).swapaxes(1, 2)
        picture = rows.reshape(side * images.shape[1], side * images.shape[2], images.shape[3])
        codec = make_codec(self.network.spec, params, self.weight)
        coded = codec.encode(picture)
        decoded = codec.decode(coded.data)
        error = np.mean((picture.astype(np.float64) - decoded) ** 2)
        pixels = picture.shape[0] * picture.shape[1]
        return {
            "file/bpp": 8 * len(coded.data) / pixels,
            "file/psnr": 10 * np.log10(255**2 / max(error, 1e-12)),
            "file/excess": 8 * len(coded.data) / coded.bits - 1,
        }

    def figures(self, state: TrainState) -> Figures:
        """Some images, and what the codec makes of them."""
        count = min(_DRAWN, len(self.source))
        images = np.stack([self.source[i]["image"] for i in range(count)])
        decoded = _decoded(state.averaged_params["codec"], jnp.asarray(images), network=self.network)
        rows = {"original": images, f"λ = {self.weight:g}": np.asarray(decoded)}
        return {"pictures": functools.partial(figures.save_image_rows, rows)}


def _bytes(decoded: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(decoded, 0, 1) * 255)


@functools.partial(jax.jit, static_argnames="network")
def _measure(params, batch, *, network: EDIC):
    image = to_fractions(normalize_pixels(batch["image"]))
    told = network.apply({"params": params}, image)
    pixels = image.shape[1] * image.shape[2]
    error = jnp.square(_bytes(told["x_rec"]) - _bytes(image)).mean((1, 2, 3))
    report = {
        "bpp_y": told["bits_y"] / pixels,
        "bpp_z": told["bits_z"] / pixels,
        "mse": jnp.square(told["x_rec"] - image).mean((1, 2, 3)),
        "psnr": 10 * jnp.log10(255.0**2 / jnp.maximum(error, 1e-6)),
        "active": jnp.abs(jnp.round(told["y_hat"])).max((1, 2)),
    }
    if min(image.shape[1:3]) >= _LARGE:
        report["ms_ssim"] = ms_ssim(image, _bytes(told["x_rec"]) / 255)
    return report


@functools.partial(jax.jit, static_argnames="network")
def _decoded(params, images, *, network: EDIC):
    told = network.apply({"params": params}, to_fractions(normalize_pixels(images)))
    return _bytes(told["x_rec"]).astype(jnp.uint8)
