"""Images said again in the terms of other data, through an autoencoder that was trained on those (arXiv:2111.12386).

Methods: ota, intern
"""

import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.checks import AtLeast, check_number
from jaxface.data.sources.source import Record, Source, Subset, fingerprint
from jaxface.data.transforms.pixels import normalize_pixels, to_levels
from jaxface.errors import UserError
from jaxface.models.generative.vqgan import VQGAN
from jaxface.paths import as_os_error, reaching, user_path
from jaxface.training.map_source import map_source
from jaxface.training.workdir import write_atomically, writing

_LOOKED_AT = 32  # images whose pixels tell a source from another one


def padded_to_stride(images: jax.Array, stride: int) -> jax.Array:
    """Images [B, H, W, C] reflected below and to the right, up to the next multiples of `stride`."""
    height, width = images.shape[1:3]
    return jnp.pad(images, ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0)), mode="reflect")


def encode_images(model: VQGAN, params: Mapping, images: jax.Array, *, pad: bool = True) -> jax.Array:
    """The latents of images, reflected up to whole numbers of codes.

    Args:
      model: the generator. params: its parameters.
      images: [B, H, W, C] float in [-1, 1].
      pad: whether other sides than multiples of the stride are allowed.

    Returns:
      [B, ⌈H / s⌉, ⌈W / s⌉, d] float32.

    Raises:
      UserError: images of other channels than the generator's; sides that are no multiples of its stride, without `pad`.
    """
    if images.shape[-1] != model.colors:
        raise UserError(
            f"generator: needs images of {model.colors} channels, as it was trained on, got {images.shape[-1]}"
        )
    if pad:
        images = padded_to_stride(images, model.stride)
    return model.apply({"params": params}, images, method="encode")


def decode_codes(model: VQGAN, params: Mapping, codes: jax.Array, height: int, width: int) -> jax.Array:
    """[B, height, width, C] float32 in [-1, 1] of codes or latents [B, h, w, d]: decoded, cropped and clipped."""
    images = model.apply({"params": params}, codes, method="decode")
    return jnp.clip(images[:, :height, :width], -1.0, 1.0)


def re_represent(model: VQGAN, params: Mapping, images: jax.Array, *, pad: bool = True) -> jax.Array:
    """R(x), images in the terms of what the generator was trained on.

        j_uv = argmin_k ‖Enc(x)_uv - E_k‖²;      R(x) = clip( Dec(E_j), -1, 1 )

    Args, raises: as `encode_images`.

    Returns:
      [B, H, W, C] float32 in [-1, 1]; what is where in an image stays there.
    """
    latents = encode_images(model, params, images, pad=pad)
    codes = model.apply({"params": params}, latents, method="quantize").codes
    return decode_codes(model, params, codes, *images.shape[1:3])


class ReRepresented:
    """A source with other images: `shards` are arrays [S, H, W, C] uint8 that follow one another."""

    def __init__(self, source: Source, shards: Sequence[np.ndarray]):
        self._source, self._shards = source, shards
        self._starts = np.cumsum([0, *map(len, shards)])
        self.labels, self.class_names, self.image_shape = (
            source.labels,
            source.class_names,
            source.image_shape,
        )

    @property
    def record_names(self) -> Sequence[str] | np.ndarray:
        """[N] names of the records; an AttributeError where the source has none."""
        return self._source.record_names

    @property
    def max_objects(self) -> int:
        """Rows of `boxes`; an AttributeError where records have none."""
        return self._source.max_objects

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """What is in an image; an AttributeError where the source does not know."""
        return self._source.ground_truth(index)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        image = np.asarray(self._shards[shard][index - self._starts[shard]])
        return {**self._source[index], "image": image}


@functools.partial(jax.jit, static_argnames=("model", "pad"))
def _bytes_of(params, batch, *, model: VQGAN, pad: bool) -> jax.Array:
    images = re_represent(model, params, normalize_pixels(batch["image"]), pad=pad)
    return jnp.round(to_levels(images)).astype(jnp.uint8)


def re_represented(
    model: VQGAN,
    params: Mapping,
    source: Source,
    *,
    folder: str | None = None,
    batch_size: int = 64,
    shard_size: int = 1024,
    pad: bool = True,
) -> Source:
    """R of every record of a source; labels, boxes and all else are kept.

    With a folder, what was made stays there, in one of its own for each generator and data: the same call, after a kill or in
    another run, makes only what is not there whole. A file that is damaged is made again.

    Args:
      model, params: the generator.
      source: the records; their `image` is uint8.
      folder: where to keep the images; none keeps them in memory.
      batch_size: images at a time. shard_size: images of a file.
      pad: as in `encode_images`.

    Raises:
      UserError: no record, or as `encode_images`; a folder that cannot be written.
    """
    check_number("shard_size", shard_size, AtLeast(1))
    if not len(source):
        raise UserError("data: needs at least one image to say again, got none")
    # A shape that cannot be taken is refused before a folder is made.
    shape = jax.ShapeDtypeStruct((1, *source.image_shape), jnp.float32)
    jax.eval_shape(functools.partial(re_represent, model, pad=pad), params, shape)
    make = functools.partial(_bytes_of, model=model, pad=pad)
    rows = [
        np.arange(start, min(start + shard_size, len(source))) for start in range(0, len(source), shard_size)
    ]
    if folder is None:
        shards = [map_source(make, Subset(source, part), params, batch_size=batch_size) for part in rows]
        return ReRepresented(source, shards)
    path = user_path("cache", folder) / _digest(model, params, source, shard_size, pad)
    with writing(path), as_os_error():
        path.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, part in enumerate(rows):
        file = path / f"{number:06d}.npy"
        images = _read(file, (len(part), *source.image_shape))
        if images is None:
            made = map_source(make, Subset(source, part), params, batch_size=batch_size)
            buffer = io.BytesIO()
            np.save(buffer, made)
            with writing(file):
                write_atomically(file, buffer.getvalue())
            images = _read(file, made.shape)
        shards.append(made if images is None else images)
    return ReRepresented(source, shards)


def _read(file: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in a file, left on the disk where it can be; None where there is none of this shape, or a damaged one."""
    try:
        with reaching(file):
            if not file.is_file():
                return None
        try:
            images = np.load(file, mmap_mode="r", allow_pickle=False)
        except (TypeError, FileNotFoundError):  # a path of another file system
            images = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _digest(model: VQGAN, params: Mapping, source: Source, shard_size: int, pad: bool) -> str:
    """Of all that says what the images are: the generator, the data, and the pixels of some images."""
    looked_at = np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(int))
    described = {"model": repr(model), "shard": shard_size, "pad": pad, "shape": list(source.image_shape)}
    digest = hashlib.sha256(json.dumps(described | fingerprint(source), sort_keys=True).encode())
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    for row in looked_at:
        digest.update(np.ascontiguousarray(source[int(row)]["image"]).tobytes())
    return digest.hexdigest()[:16]
