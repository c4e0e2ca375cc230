"""Files of coded pictures: a header that says what they are of, and symbols through a range coder.

    magic "EDIC", version, coder, flags, height, width, λ, A, bytes of both streams, checksum of the model, checksum of the file;
    which channels have symbols at all; the stream of ẑ; the stream of ŷ; zeros up to a byte for every 1024 pixels

The checksums are CRC-32. The last rule holds a claim of size against the length of the file before anything is allocated.

Methods: edic
"""

import dataclasses
import struct
import zlib
from collections.abc import Callable

import numpy as np

from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.models.compression.integers import CDF_BITS, MOST_HYPER, MOST_SYMBOL, IntegerParameters, Tables

MAGIC, VERSION = b"EDIC", 1
_HEADER = struct.Struct("<4sBHBHHfHIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
MOST_SIDE = 1 << 13
PIXELS_PER_BYTE = 1024
GRAY = 1
"""Flag of a picture without color."""
_ROWS = 2048
_MOST_DIGITS, _DIGIT_BITS = 4, 4


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
      height, width: of the picture, pixels.
      gray: whether it has no color.
      weight: λ that its model was trained with.
      most: A, the largest |symbol| of ŷ.
      z_bytes, y_bytes: of both streams.
      model: checksum of the model.
    """

    height: int
    width: int
    gray: bool
    weight: float
    most: int
    z_bytes: int
    y_bytes: int
    model: int


def coder_version() -> int:
    """Major and minor number of the installed range coder, which decides what bytes mean."""
    import importlib.metadata

    optional("constriction", "compression")
    major, minor = importlib.metadata.version("constriction").split(".")[:2]
    return int(major) << 8 | int(minor)


def check_coder(coder: int) -> None:
    """Raises UserError unless a file's range coder is the installed one."""
    ours = coder_version()
    if coder != ours:
        raise UserError(
            f"stream: it was written with constriction {coder >> 8}.{coder & 255}, installed is {ours >> 8}.{ours & 255}"
        )


def pack(header: Header, channels: np.ndarray, z_stream: bytes, y_stream: bytes) -> bytes:
    """A file.

    Args:
      header: with the lengths of both streams.
      channels: [M] bool, which have symbols.
      z_stream, y_stream: bytes.
    """
    body = np.packbits(channels).tobytes() + z_stream + y_stream
    least = -(-header.height * header.width // PIXELS_PER_BYTE)
    body += bytes(max(least - len(body) - HEADER_BYTES, 0))
    flags = GRAY if header.gray else 0
    head = _HEADER.pack(
        MAGIC, VERSION, coder_version(), flags, header.height, header.width, header.weight, header.most,
        header.z_bytes, header.y_bytes, header.model,
    )  # fmt: skip
    return head + _CRC.pack(zlib.crc32(head + body)) + body


def _parsed(data: bytes, latents: int, model: int | None) -> Header:
    if data[:4] != MAGIC:
        raise UserError("stream: it is no EDIC file")
    if len(data) < HEADER_BYTES:
        raise UserError(f"stream: it is cut short, {len(data)} bytes where the header has {HEADER_BYTES}")
    head, body = data[: _HEADER.size], data[HEADER_BYTES:]
    _, version, coder, flags, height, width, weight, most, z_bytes, y_bytes, owner = _HEADER.unpack(head)
    if version != VERSION:
        raise UserError(f"stream: it has version {version} of the format, this program reads {VERSION}")
    claimed = z_bytes + y_bytes + (-(-latents // 8) if owner == model else 0)
    if claimed > len(body):
        raise UserError(f"stream: it is cut short, {len(body)} bytes where its header claims {claimed}")
    if zlib.crc32(head + body) != _CRC.unpack(data[_HEADER.size : HEADER_BYTES])[0]:
        raise UserError("stream: it is damaged: its checksum is another one")
    if model is not None and owner != model:
        raise UserError(f"stream: it is of another codec, {owner:08x}; that of the run is {model:08x}")
    if not (0 < height <= MOST_SIDE and 0 < width <= MOST_SIDE):
        raise UserError(
            f"stream: its header claims {width}x{height} pixels, the limit is {MOST_SIDE}x{MOST_SIDE}"
        )
    if height * width > PIXELS_PER_BYTE * len(data):
        raise UserError(f"stream: its header claims {width}x{height} pixels in {len(data)} bytes")
    if flags > GRAY or most > MOST_SYMBOL or z_bytes % 4 or y_bytes % 4:
        raise UserError("stream: its header makes no sense")
    if model is not None:
        check_coder(coder)
    return Header(height, width, bool(flags & GRAY), weight, most, z_bytes, y_bytes, owner)


def read_header(data: bytes) -> Header:
    """What a file says of itself, whichever codec wrote it.

    Raises:
      UserError: no such file, one of another version, cut short, altered, or that claims too much.
    """
    return _parsed(data, 0, None)


def unpack(data: bytes, *, latents: int, model: int) -> tuple[Header, np.ndarray, bytes, bytes]:
    """(header, channels [M] bool, stream of ẑ, stream of ŷ) of a file; allocates no more than the file is long.

    Args:
      data: the file.
      latents: M of the codec.
      model: checksum of the codec, which the file has to be of.

    Raises:
      UserError: as `read_header`, or a file of another codec or range coder.
    """
    header = _parsed(data, latents, model)
    body, masks = data[HEADER_BYTES:], -(-latents // 8)
    channels = np.unpackbits(np.frombuffer(body[:masks], np.uint8), count=latents).astype(bool)
    streams = masks + header.z_bytes
    return header, channels, body[masks:streams], body[streams : streams + header.y_bytes]


def _rows(frequencies: np.ndarray) -> np.ndarray:
    """[S, n] float32 in rows, as the coder reads memory; exact, since a frequency has 16 bits."""
    return np.ascontiguousarray(frequencies / 2.0**CDF_BITS, np.float32)


class _Encoder:
    """Symbols to bytes, every one under frequencies of its own that add up to 2^16."""

    def __init__(self):
        stream = optional("constriction", "compression").stream
        self._coder, self._family = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False)

    def add(self, symbols: np.ndarray, frequencies: np.ndarray) -> None:
        """Symbols [S] from 0 under [S, n]; a frequency over 2^16 is a float32 without rounding."""
        rows = _rows(frequencies)
        self._coder.encode(np.ascontiguousarray(symbols, np.int32), self._family, rows)

    def finish(self) -> bytes:
        """All of them."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class _Decoder:
    """The inverse of `_Encoder`."""

    def __init__(self, data: bytes):
        stream = optional("constriction", "compression").stream
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._coder, self._family = stream.queue.RangeDecoder(words), stream.model.Categorical(perfect=False)

    def take(self, frequencies: np.ndarray) -> np.ndarray:
        """[S] symbols from 0 under [S, n].

        Raises:
          UserError: the bytes are no code of such symbols.
        """
        rows = _rows(frequencies)
        try:
            return self._coder.decode(self._family, rows)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise UserError(f"stream: it is damaged ({' '.join(str(error).split())[:80]})") from None


_DIGITS = np.full((1, 1 << _DIGIT_BITS), 1 << (CDF_BITS - _DIGIT_BITS))


def _together(prior: np.ndarray) -> int:
    """Positions whose channels go through the coder at once."""
    return max(_ROWS // len(prior), 1)


def encode_hyper(tables: Tables, z: np.ndarray) -> bytes:
    """ẑ [a, b, N] int under the stored prior; what is beyond its range is escaped, digits of four bits after a count of them."""
    values = z.reshape(-1, z.shape[-1])
    prior, most = tables.arrays["prior"], tables.prior_range
    beyond = np.abs(values) > most
    symbols = np.where(beyond, 2 * most + 1, values + most)
    coder, together = _Encoder(), _together(prior)
    for start in range(0, len(symbols), together):
        some = symbols[start : start + together]
        coder.add(some.reshape(-1), np.tile(prior, (len(some), 1)))
    for value in values[beyond]:
        excess = 2 * (abs(int(value)) - most - 1) + (value < 0)
        digits = [
            int(excess) >> (_DIGIT_BITS * i) & 15 for i in range(max((int(excess).bit_length() + 3) // 4, 1))
        ]
        for digit in (len(digits), *digits):
            coder.add(np.array([digit]), _DIGITS)
    return coder.finish()


def decode_hyper(tables: Tables, data: bytes, height: int, width: int) -> np.ndarray:
    """ẑ [a, b, N] int64, the inverse of `encode_hyper`.

    Raises:
      UserError: bytes that are no such code.
    """
    prior, most = tables.arrays["prior"], tables.prior_range
    coder = _Decoder(data)
    values = np.empty((height * width, len(prior)), np.int64)
    together = _together(prior)
    for start in range(0, len(values), together):
        some = values[start : start + together]
        some[:] = coder.take(np.tile(prior, (len(some), 1))).reshape(some.shape)
    values -= most
    beyond = values == most + 1
    for at in zip(*np.nonzero(beyond), strict=True):
        count = int(coder.take(_DIGITS)[0])
        if not 1 <= count <= _MOST_DIGITS:
            raise UserError("stream: it is damaged (an escape of another length)")
        excess = sum(int(coder.take(_DIGITS)[0]) << (_DIGIT_BITS * i) for i in range(count))
        size = (excess >> 1) + most + 1
        if size > MOST_HYPER:
            raise UserError("stream: it is damaged (an escape beyond what can be coded)")
        values[at] = -size if excess & 1 else size
    return values.reshape(height, width, -1)


def encode_latents(tables: Tables, symbols: np.ndarray, parameters: IntegerParameters, most: int) -> bytes:
    """Symbols [S] int in [-A, A] under parameters [S, K]."""
    coder = _Encoder()
    for start in range(0, len(symbols), _ROWS):
        some = slice(start, start + _ROWS)
        coder.add(symbols[some] + most, tables.frequencies(parameters.rows(some), most))
    return coder.finish()


def decode_latents(tables: Tables, data: bytes, parameters: IntegerParameters, most: int) -> np.ndarray:
    """[S] int64, the inverse of `encode_latents`.

    Raises:
      UserError: bytes that are no such code.
    """
    coder = _Decoder(data)
    count = len(parameters.mu)
    symbols = np.empty(count, np.int64)
    for start in range(0, count, _ROWS):
        some = slice(start, start + _ROWS)
        symbols[some] = coder.take(tables.frequencies(parameters.rows(some), most))
    return symbols - most


def contextual_latents(
    tables: Tables,
    features: np.ndarray,
    channels: np.ndarray,
    most: int,
    code: Callable[[int, IntegerParameters], np.ndarray],
) -> np.ndarray:
    """Latents [h, w, M], one position after the other, each told by those before it: an auto-regressive model's way.

    Args:
      tables: of the model.
      features: [h, w, 2 M] of the hyper-decoder.
      channels: [M] bool, which have symbols.
      most: A.
      code: (number of the position, parameters [m, K] of its m channels) -> their symbols [m], which it codes or decodes.
    """
    height, width, _ = features.shape
    masked, layers = tables.context_layers()
    size, latents = masked.kernel.shape[0], masked.kernel.shape[2]
    pad, earlier = size // 2, size * size // 2
    kernel = masked.kernel.reshape(size * size, latents, -1)[:earlier].reshape(earlier * latents, -1)
    padded = np.zeros((height + 2 * pad, width + 2 * pad, latents))
    for number in range(height * width):
        row, column = divmod(number, width)
        window = padded[row : row + size, column : column + size].reshape(size * size, latents)[:earlier]
        seen = window.reshape(1, -1) @ kernel + masked.bias
        parameters = tables.contextual(seen, features[row, column][None], layers)
        some = parameters.rows((0, channels))
        padded[row + pad, column + pad, channels] = code(number, some)
    return padded[pad:-pad, pad:-pad].astype(np.int64)


def encode_contextual(
    tables: Tables, latents: np.ndarray, features: np.ndarray, channels: np.ndarray, most: int
) -> bytes:
    """Latents [h, w, M] int of an auto-regressive model."""
    coder = _Encoder()
    rows = latents.reshape(-1, latents.shape[-1])

    def code(number, parameters):
        symbols = rows[number, channels]
        coder.add(symbols + most, tables.frequencies(parameters, most))
        return symbols

    contextual_latents(tables, features, channels, most, code)
    return coder.finish()


def decode_contextual(
    tables: Tables, data: bytes, features: np.ndarray, channels: np.ndarray, most: int
) -> np.ndarray:
    """[h, w, M] int64, the inverse of `encode_contextual`; serial, which is what it costs.

    Raises:
      UserError: bytes that are no such code.
    """
    coder = _Decoder(data)

    def code(number, parameters):
        del number
        return coder.take(tables.frequencies(parameters, most)) - most

    return contextual_latents(tables, features, channels, most, code)
