"""A codec as it is used: pictures to bytes and back, through one file with the network, its tables and a checksum.

Methods: edic
"""

import dataclasses
import functools
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.models.compression import bitstream
from jaxface.models.compression.integers import (
    CDF_BITS,
    MOST_HYPER,
    MOST_SYMBOL,
    Tables,
    layer_shapes,
    make_tables,
)
from jaxface.models.compression.networks import CENTERED, EDIC, CodecSpec, from_description

FORMAT = 1
_NETWORK, _TABLE = "network/", "tables/"


@dataclasses.dataclass(frozen=True)
class Coded:
    """A picture as symbols, and what they are of.

    Attributes:
      data: the file.
      y, z: [h, w, M] and [a, b, N] int64, the symbols.
      bits: of both under the integer tables, header left out.
    """

    data: bytes
    y: np.ndarray
    z: np.ndarray
    bits: float


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A trained codec; `make_codec` makes one of a network, `read_codec` of a file.

    Attributes:
      spec: the network.
      params: its parameters, numpy arrays.
      tables: what the entropy coder looks up.
      weight: λ of its training.
    """

    spec: CodecSpec
    params: Mapping[str, Any]
    tables: Tables
    weight: float

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by name, as the file has it."""
        flat = flax.traverse_util.flatten_dict(dict(self.params), sep="/")
        arrays = {f"{_NETWORK}{name}": np.asarray(leaf, np.float32) for name, leaf in flat.items()}
        return arrays | {f"{_TABLE}{name}": leaf for name, leaf in self.tables.arrays.items()}

    @functools.cached_property
    def checksum(self) -> int:
        """CRC-32 of the network, its parameters and its tables, which every file that it writes is of."""
        crc = zlib.crc32(json.dumps(self.described(), sort_keys=True).encode())
        for name in sorted(self.arrays):
            leaf = np.ascontiguousarray(self.arrays[name])
            crc = zlib.crc32(f"{name}{leaf.dtype}{leaf.shape}".encode(), crc)
            crc = zlib.crc32(leaf.astype(leaf.dtype.newbyteorder("<")).tobytes(), crc)
        return crc

    def described(self) -> dict[str, Any]:
        """The network and λ, JSON-like."""
        return {
            "format": FORMAT,
            "kind": "codec",
            "network": dataclasses.asdict(self.spec),
            "weight": self.weight,
        }

    @functools.cached_property
    def network(self) -> EDIC:
        """The network in floats."""
        return EDIC(self.spec)

    @functools.cached_property
    def _analyze(self):
        return jax.jit(functools.partial(self.network.apply, method=EDIC.analyze))

    @functools.cached_property
    def _synthesize(self):
        return jax.jit(functools.partial(self.network.apply, method=EDIC.synthesize))

    def check_pixels(self, image: np.ndarray) -> None:
        """Raises UserError for what cannot be encoded: other than uint8 RGB or gray, or a side below `spec.multiple`."""
        if image.dtype != np.uint8:
            raise UserError(f"image: needs 8 bits a channel, got {image.dtype}; convert it first")
        if image.ndim != 3 or image.shape[2] not in (1, 3):
            channels = image.shape[2] if image.ndim == 3 else 1
            what = "an image without transparency" if channels in (2, 4) else "an RGB or gray image"
            raise UserError(f"image: needs {what}, got {channels} channels; flatten it first")
        height, width = image.shape[:2]
        if min(height, width) < self.spec.multiple:
            raise UserError(
                f"image: needs sides of at least {self.spec.multiple} pixels, the stride of this network, got {width}x{height}"
            )
        if max(height, width) > bitstream.MOST_SIDE:
            raise UserError(
                f"image: needs sides of at most {bitstream.MOST_SIDE} pixels, got {width}x{height}"
            )

    def padded(self, image: np.ndarray) -> np.ndarray:
        """[1, H', W', 3] float32 in [0, 1]: gray repeated, the last row and column repeated up to multiples of the stride."""
        height, width = image.shape[:2]
        ends = ((0, -height % self.spec.multiple), (0, -width % self.spec.multiple), (0, 0))
        pixels = np.pad(image, ends, mode="edge")
        return np.broadcast_to(pixels[None], (1, *pixels.shape[:2], 3)).astype(np.float32) / 255

    def encode(self, image: np.ndarray) -> Coded:
        """A picture as a file.

        Args:
          image: [H, W, 3] or gray [H, W, 1] uint8.

        Raises:
          UserError: as `check_pixels`.
        """
        self.check_pixels(image)
        y, z = self._analyze({"params": self.params}, jnp.asarray(self.padded(image)))
        return self.encode_symbols(np.asarray(y)[0], np.asarray(z)[0], image.shape)

    def encode_symbols(self, y: np.ndarray, z: np.ndarray, shape: tuple[int, ...]) -> Coded:
        """What analysis and hyper-analysis gave for a picture of a shape (H, W, channels), rounded and coded."""
        z = np.clip(np.rint(z), -MOST_HYPER, MOST_HYPER).astype(np.int64)
        sums = self.tables.hyper(z)
        autoregressive = self.spec.entropy == "autoregressive"
        parameters = None if autoregressive else self.tables.parameters(sums)
        if self.spec.entropy in CENTERED:
            y = y - self.tables.offsets(parameters)
        symbols = np.clip(np.rint(y), -MOST_SYMBOL, MOST_SYMBOL).astype(np.int64)
        channels = (symbols != 0).any((0, 1))
        most = int(np.abs(symbols).max(initial=0))
        z_stream = bitstream.encode_hyper(self.tables, z)
        if not channels.any():
            y_stream, bits = b"", 0.0
        elif autoregressive:
            y_stream = bitstream.encode_contextual(self.tables, symbols, sums, channels, most)
            bits = 8.0 * len(
                y_stream
            )  # its tables depend on the order in which they are made: nothing else is worked out
        else:
            flat = self.tables.flat(parameters, channels)
            rows = symbols[..., channels].reshape(-1)
            y_stream = bitstream.encode_latents(self.tables, rows, flat, most)
            bits = self.tables.bits(rows, flat, most)
        bits += self.hyper_bits(z)
        gray = shape[2] == 1
        header = bitstream.Header(
            shape[0], shape[1], gray, self.weight, most, len(z_stream), len(y_stream), self.checksum
        )
        return Coded(bitstream.pack(header, channels, z_stream, y_stream), symbols, z, bits)

    def hyper_bits(self, z: np.ndarray) -> float:
        """Bits of ẑ under the stored prior, four for every digit of an escape."""
        prior, most = self.tables.arrays["prior"], self.tables.prior_range
        beyond = np.abs(z) > most
        symbols = np.where(beyond, 2 * most + 1, z + most)
        bits = 16 - np.log2(prior[np.arange(len(prior)), symbols])
        excess = 2 * (np.abs(z[beyond]) - most - 1) + (z[beyond] < 0)
        digits = sum(1 + max((int(value).bit_length() + 3) // 4, 1) for value in excess)
        return float(bits.sum()) + 4.0 * digits

    def decode_symbols(self, data: bytes) -> tuple[bitstream.Header, np.ndarray, np.ndarray]:
        """(header, symbols [h, w, M], what is added to them [h, w, M] or None) of a file, whole numbers from the bits on.

        Raises:
          UserError: as `bitstream.unpack`, or streams that are no code.
        """
        spec = self.spec
        header, channels, z_stream, y_stream = bitstream.unpack(
            data, latents=spec.latents, model=self.checksum
        )
        blocks = [-(-side // spec.multiple) for side in (header.height, header.width)]
        z = bitstream.decode_hyper(self.tables, z_stream, *blocks)
        every = spec.entropy in CENTERED  # all means are added, those of silent channels too
        sums = self.tables.hyper(z, None if every else channels)
        size = [side * 2**spec.hyper_halvings for side in blocks]
        symbols, offsets = np.zeros((*size, spec.latents), np.int64), None
        if spec.entropy == "autoregressive":
            if channels.any():
                symbols = bitstream.decode_contextual(self.tables, y_stream, sums, channels, header.most)
            return header, symbols, offsets
        parameters = self.tables.parameters(sums)
        offsets = self.tables.offsets(parameters)
        if channels.any():
            flat = self.tables.flat(parameters, channels if every else None)
            rows = bitstream.decode_latents(self.tables, y_stream, flat, header.most)
            symbols[..., channels] = rows.reshape(*size, -1)
        return header, symbols, offsets

    def decode(self, data: bytes) -> np.ndarray:
        """The picture of a file, [H, W, 3] uint8, gray [H, W, 1].

        Raises:
          UserError: as `decode_symbols`.
        """
        header, symbols, offsets = self.decode_symbols(data)
        latents = symbols.astype(np.float32)
        if offsets is not None:
            latents = latents + offsets
        return self.render(latents, header)

    def render(self, latents: np.ndarray, header: bitstream.Header) -> np.ndarray:
        """The picture of latents [h, w, M], cropped to what the header says; floats, so a gray level may differ."""
        decoded = np.asarray(self._synthesize({"params": self.params}, jnp.asarray(latents)[None]))[0]
        decoded = decoded[: header.height, : header.width]
        if header.gray:
            decoded = decoded.mean(-1, keepdims=True)
        return np.rint(np.clip(decoded, 0, 1) * 255).astype(np.uint8)


def make_codec(spec: CodecSpec, params: Mapping[str, Any], weight: float) -> Codec:
    """A codec of a trained network, with tables that are made here and from here on stored.

    Args:
      spec: the network.
      params: of `EDIC`.
      weight: λ of its training.

    Raises:
      UserError: weights that fixed point does not hold.
    """
    params = jax.tree.map(np.asarray, dict(params))
    return Codec(spec, params, make_tables(spec, params), float(weight))


def codec_bytes(codec: Codec) -> bytes:
    """The file of a codec: safetensors, whose header says the network and a checksum."""
    said = json.dumps({**codec.described(), "crc32": codec.checksum})
    return optional("safetensors.numpy", "interop").save(codec.arrays, metadata={"jaxface": said})


def _fits(spec: CodecSpec, network: Mapping[str, np.ndarray], tables: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays have the names, shapes and types of a network's weights and tables."""
    image = jax.ShapeDtypeStruct((1, spec.multiple, spec.multiple, 3), jnp.float32)
    params = jax.eval_shape(EDIC(spec).init, jax.random.key(0), image)["params"]
    wanted = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}
    if {name: leaf.shape for name, leaf in network.items()} != wanted:
        return False
    prior = tables.get("prior", np.zeros((0, 0)))
    sizes = {name: shape for name, shape in layer_shapes(spec).items() if name != "prior"}
    return (
        {name: leaf.shape for name, leaf in tables.items() if name != "prior"} == sizes
        and all(leaf.dtype == np.int32 for leaf in tables.values())
        and all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in network.values())
        and prior.ndim == 2
        and len(prior) == spec.channels
        and prior.shape[1] >= 4
        and prior.shape[1] % 2 == 0
        and bool((prior > 0).all() and (prior.sum(1) == 1 << CDF_BITS).all())
    )


def read_codec(path: pathlib.Path) -> Codec:
    """The codec of a file that `codec_bytes` made.

    Raises:
      UserError: no such file, another kind, a network that it does not hold, or an altered one.
    """
    safetensors = optional("safetensors", "interop")
    try:
        with safetensors.safe_open(path, "np") as opened:
            said = (opened.metadata() or {}).get("jaxface")
            if said is None:
                raise UserError(f"codec: {path} is no codec")
            described = json.loads(said)
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"codec: {path} cannot be read ({' '.join(str(error).split())[:120]})") from None
    if (
        not isinstance(described, dict)
        or described.get("kind") != "codec"
        or described.get("format") != FORMAT
    ):
        raise UserError(f"codec: {path} is no codec of format {FORMAT}")
    spec = from_description(described.get("network"))
    network = {name[len(_NETWORK) :]: leaf for name, leaf in arrays.items() if name.startswith(_NETWORK)}
    tables = {name[len(_TABLE) :]: leaf for name, leaf in arrays.items() if name.startswith(_TABLE)}
    params = flax.traverse_util.unflatten_dict(
        {tuple(name.split("/")): leaf for name, leaf in network.items()}
    )
    weight = described.get("weight")
    if not isinstance(weight, int | float) or not _fits(spec, network, tables):
        raise UserError(f"codec: {path} does not hold the network that it describes")
    codec = Codec(spec, params, Tables(spec, tables), float(weight))
    if codec.checksum != described.get("crc32"):
        raise UserError(f"codec: {path} is damaged: its checksum is another one")
    return codec
