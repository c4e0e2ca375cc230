"""Small codecs with weights that are exact fractions, the same on every machine; nothing is compiled to make them."""

import dataclasses
import functools

import jax
import numpy as np

from jaxface.models.compression import EDIC, Codec, CodecSpec, make_codec
from jaxface.models.compression.video import DVC, VideoSpec

SMALL = CodecSpec(
    channels=6, latents=8, attention=None, enhancer_width=4, enhancer_blocks=1, halvings=2, hyper_halvings=1
)


def filled(shapes: dict, seed: int = 0) -> dict:
    """Parameters of these shapes."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        if name == "beta":
            return np.ones(shape.shape, np.float32)
        if name == "gamma":
            return np.full(shape.shape, 0.125, np.float32)
        fan = max(int(np.prod(shape.shape[:-1])), 1)
        scale = 2.0 ** np.round(np.log2(1.7 * fan**-0.5)) if len(shape.shape) > 1 else 0.25
        return (rng.integers(-64, 65, shape.shape) / 64 * scale).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


VIDEO = VideoSpec(
    residual=CodecSpec(channels=4, latents=4, attention=None, enhance=False, halvings=2, hyper_halvings=1),
    compensate=False,
    levels=2,
    flow_widths=(4, 2),
    motion_channels=4,
)


def video_params() -> dict:
    frame = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(lambda key, x: DVC(VIDEO).init(key, x, x), jax.random.key(0), frame)["params"]
    params = filled(shapes)
    params["residual"]["g_a"]["conv2"]["kernel"] *= 8
    params["motion_encoder"]["conv8"]["kernel"] *= 8
    return params


def params_of(spec: CodecSpec, seed: int = 0) -> dict:
    network = EDIC(spec)
    image = np.zeros((1, spec.multiple, spec.multiple, 3), np.float32)
    shapes = jax.eval_shape(lambda key: network.init(key, image), jax.random.key(0))["params"]
    params = filled(shapes, seed)
    params["g_a"][f"conv{spec.halvings}"]["kernel"] *= 8  # latents of some units
    return params


@functools.cache
def codec(entropy: str = "mixture", **changes) -> Codec:
    spec = dataclasses.replace(SMALL, entropy=entropy, **changes)
    return make_codec(spec, params_of(spec), 512.0)


def symbols(codec: Codec, height: int, width: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(y, z), whole numbers, of a picture whose sides are multiples of the stride."""
    rng, spec = np.random.default_rng(seed), codec.spec
    y = np.rint(2.0 * rng.standard_t(4, (height >> spec.halvings, width >> spec.halvings, spec.latents)))
    z = np.rint(3.0 * rng.normal(size=(height // spec.multiple, width // spec.multiple, spec.channels)))
    return y, z
