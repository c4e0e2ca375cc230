"""A network with its weights as one file of StableHLO, to be run where neither Flax nor this library is."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.export
import numpy as np

from jaxface.errors import UserError
from jaxface.interop.files import optional, replacing
from jaxface.interop.state_dict import check_variables
from jaxface.paths import local_path

PLATFORMS = ("cpu", "cuda", "tpu")


def save_stablehlo(
    path: str | pathlib.Path,
    module: nn.Module,
    variables: Mapping,
    image_shape: tuple[int, int, int],
    *,
    dtype: Any = np.float32,
) -> None:
    """Writes a network as a `jax.export` program for CPUs, NVIDIA GPUs and TPUs, for any batch size.

        image [b, H, W, C] -> embedding [b, E] float32, not normalized

    Args:
      path: the file.
      module: any network of `jaxface.models`.
      variables: its variables; they become constants of the program.
      image_shape: (H, W, C).
      dtype: of the image: float32 in [-1, 1], or uint8 pixels, which the program normalizes.

    Raises:
      UserError: another dtype, variables of another network, or a file that cannot be written.
    """
    from jaxface.data.transforms.pixels import normalize_pixels  # its package imports the input pipeline

    if np.dtype(dtype) not in (np.float32, np.uint8):
        raise UserError(f"dtype: needs float32 or uint8; got {np.dtype(dtype).name}")
    check_variables(variables, module, image_shape)
    optional("flatbuffers")  # jax.export serializes with it and does not require it
    constants = jax.device_get(variables)
    (batch,) = jax.export.symbolic_shape("b")

    def embed(image: jax.Array) -> jax.Array:
        return module.apply(constants, normalize_pixels(image), train=False)

    program = jax.export.export(jax.jit(embed), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct((batch, *image_shape), np.dtype(dtype))
    )
    with replacing(path) as temporary:
        temporary.write_bytes(program.serialize())


def load_stablehlo(path: str | pathlib.Path) -> Callable[[jax.Array], jax.Array]:
    """The function that `save_stablehlo` wrote, jitted.

    The file is a program: it is compiled and run as it is, so take it only from whom you would take code.

    Raises:
      UserError: it cannot be read.
    """
    path = local_path("program", path)
    optional("flatbuffers")
    try:
        return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    except OSError as error:
        raise UserError(f"program: cannot read {path}: {error.strerror or error}") from None
    except Exception:  # whatever the decoder of a damaged file stumbles over
        raise UserError(f"program: {path} is damaged, or not a program that jax.export wrote") from None
