"""Files of coded videos: the first frame as a picture, every other as a flow and what it leaves.

    magic "EDVC", version, coder, frames, checksum of the codec, length of the first frame's file, checksum of the file;
    that file; for each other frame a packet: A, bytes of three streams, which channels have symbols, the streams of m̂, ẑ
    and ŷ; zeros up to a byte for every 16,384 pixels of all frames

The tables of all streams depend on the bits alone, never on decoded pixels: floats may drift by a level, symbols may not. Both
sides keep references as bytes.

Methods: edic
"""

import dataclasses
import functools
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.errors import UserError
from jaxface.models.compression import bitstream
from jaxface.models.compression.codec import Codec
from jaxface.models.compression.integers import (
    MOST_HYPER,
    MOST_SYMBOL,
    Tables,
    make_tables,
    prior_frequencies,
)
from jaxface.models.compression.networks import CENTERED
from jaxface.models.compression.video import DVC, VideoSpec

MAGIC, VERSION = b"EDVC", 1
_HEADER = struct.Struct("<4sBHHII")
_CRC = struct.Struct("<I")
_PACKET = struct.Struct("<HIII")
HEADER_BYTES = _HEADER.size + _CRC.size
MOST_FRAMES = (1 << 16) - 1
PIXELS_PER_BYTE = 1 << 14


@dataclasses.dataclass(frozen=True, eq=False)
class VideoCodec:
    """A trained video codec; `make_video_codec` makes one of two networks.

    Attributes:
      spec: the network of predicted frames.
      params: its parameters, numpy arrays.
      intra: the codec of first frames.
      tables: what the streams of ẑ and ŷ look up.
      motion: what that of m̂ looks up, its "prior" alone; None without motion.
    """

    spec: VideoSpec
    params: Mapping[str, Any]
    intra: Codec
    tables: Tables
    motion: Tables | None

    @functools.cached_property
    def checksum(self) -> int:
        """CRC-32 of both networks and all tables."""
        crc = zlib.crc32(
            json.dumps(dataclasses.asdict(self.spec), sort_keys=True).encode(), self.intra.checksum
        )
        for path, leaf in sorted(
            (jax.tree_util.keystr(path), np.asarray(leaf, "<f4"))
            for path, leaf in jax.tree_util.tree_leaves_with_path(dict(self.params))
        ):
            crc = zlib.crc32(f"{path}{leaf.shape}".encode() + leaf.tobytes(), crc)
        named = [*sorted(self.tables.arrays.items())]
        if self.motion is not None:
            named.append(("motion", self.motion.arrays["prior"]))
        for name, leaf in named:
            crc = zlib.crc32(
                f"{name}{leaf.shape}".encode() + np.ascontiguousarray(leaf, "<i4").tobytes(), crc
            )
        return crc

    @functools.cached_property
    def _apply(self):
        network = DVC(self.spec)

        def compiled(method):
            return jax.jit(
                lambda params, *arguments: network.apply({"params": params}, *arguments, method=method)
            )

        names = ("encode_motion", "predict", "analyze", "complete")
        return {name: compiled(getattr(DVC, name)) for name in names}

    def _padded(self, frame: np.ndarray) -> jax.Array:
        height, width = frame.shape[:2]
        multiple = self.spec.multiple
        ends = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        return jnp.asarray(np.pad(frame, ends, mode="edge")[None], jnp.float32) / 255

    def encode(self, frames: Sequence[np.ndarray]) -> bytes:
        """Frames [H, W, 3] uint8 as a file.

        Raises:
          UserError: no frame or too many, frames of different sizes, or what the picture codec refuses.
        """
        if not 0 < len(frames) <= MOST_FRAMES:
            raise UserError(f"frames: needs 1 to {MOST_FRAMES}, got {len(frames)}")
        shape = frames[0].shape
        for number, frame in enumerate(frames):
            self.intra.check_pixels(frame)
            if frame.shape != shape or shape[2] != 3:
                raise UserError(
                    f"frames: need one size, RGB: frame {number} is {_size(frame.shape)}, the first {_size(shape)}"
                )
        first = self.intra.encode(frames[0]).data
        packets = []
        reference = self.intra.decode(first)
        for frame in frames[1:]:
            packet, reference = self._encode_frame(frame, reference)
            packets.append(packet)
        body = first + b"".join(packets)
        least = -(-shape[0] * shape[1] * len(frames) // PIXELS_PER_BYTE)
        body += bytes(max(least - len(body) - HEADER_BYTES, 0))
        head = _HEADER.pack(MAGIC, VERSION, bitstream.coder_version(), len(frames), self.checksum, len(first))
        return head + _CRC.pack(zlib.crc32(head + body)) + body

    def _encode_frame(self, frame: np.ndarray, reference: np.ndarray) -> tuple[bytes, np.ndarray]:
        now, before = self._padded(frame), self._padded(reference)
        motion, m_stream = None, b""
        if self.motion is not None:
            latents = np.asarray(self._apply["encode_motion"](self.params, now, before))[0]
            motion = np.clip(np.rint(latents), -MOST_HYPER, MOST_HYPER).astype(np.int64)
            m_stream = bitstream.encode_hyper(self.motion, motion)
        prediction = self._predict(motion, before)
        y, z = (np.asarray(part)[0] for part in self._apply["analyze"](self.params, now - prediction))
        z = np.clip(np.rint(z), -MOST_HYPER, MOST_HYPER).astype(np.int64)
        parameters = self.tables.parameters(self.tables.hyper(z))
        if self.spec.residual.entropy in CENTERED:
            y = y - self.tables.offsets(parameters)
        symbols = np.clip(np.rint(y), -MOST_SYMBOL, MOST_SYMBOL).astype(np.int64)
        channels = (symbols != 0).any((0, 1))
        most = int(np.abs(symbols).max(initial=0))
        z_stream, y_stream = bitstream.encode_hyper(self.tables, z), b""
        if channels.any():
            rows = symbols[..., channels].reshape(-1)
            y_stream = bitstream.encode_latents(
                self.tables, rows, self.tables.flat(parameters, channels), most
            )
        packet = _PACKET.pack(most, len(m_stream), len(z_stream), len(y_stream))
        packet += np.packbits(channels).tobytes() + m_stream + z_stream + y_stream
        decoded = self._complete(prediction, symbols, self.tables.offsets(parameters), frame.shape)
        return packet, decoded

    def _predict(self, motion: np.ndarray | None, before: jax.Array) -> jax.Array:
        latents = None if motion is None else jnp.asarray(motion[None], jnp.float32)
        return self._apply["predict"](self.params, latents, before)[1]

    def _complete(self, prediction, symbols, offsets, shape) -> np.ndarray:
        latents = symbols.astype(np.float32) + (0 if offsets is None else offsets)
        decoded = np.asarray(
            self._apply["complete"](self.params, prediction, jnp.asarray(latents[None], jnp.float32))
        )[0]
        return np.rint(np.clip(decoded[: shape[0], : shape[1]], 0, 1) * 255).astype(np.uint8)

    def decode(self, data: bytes) -> Iterator[np.ndarray]:
        """The frames of a file [H, W, 3] uint8, one after the other.

        Raises:
          UserError: no such file, one of another version, coder or codec, cut short, altered, or that claims too much.
        """
        count, first, packets = unpack_video(data, self.checksum)
        frame = self.intra.decode(first)
        yield frame
        for _ in range(count - 1):
            frame, packets = self._decode_frame(packets, frame)
            yield frame

    def _decode_frame(self, packets: bytes, reference: np.ndarray) -> tuple[np.ndarray, bytes]:
        """The next frame, and the packets after it."""
        masks = -(-self.spec.residual.latents // 8)
        if len(packets) < _PACKET.size + masks:
            raise UserError("stream: it is cut short, a frame is missing")
        most, *lengths = _PACKET.unpack_from(packets)
        at = _PACKET.size + masks
        if sum(lengths) > len(packets) - at:
            raise UserError(
                f"stream: it is cut short, a frame claims {sum(lengths)} bytes of {len(packets) - at}"
            )
        if most > MOST_SYMBOL or any(length % 4 for length in lengths):
            raise UserError("stream: the header of a frame makes no sense")
        channels = np.unpackbits(
            np.frombuffer(packets[_PACKET.size : at], np.uint8), count=self.spec.residual.latents
        )
        channels, streams = channels.astype(bool), []
        for length in lengths:
            streams.append(packets[at : at + length])
            at += length
        before, residual = self._padded(reference), self.spec.residual
        height, width = before.shape[1:3]
        motion = None
        if self.motion is not None:
            motion = bitstream.decode_hyper(self.motion, streams[0], height // 16, width // 16)
        z = bitstream.decode_hyper(
            self.tables, streams[1], height // residual.multiple, width // residual.multiple
        )
        parameters = self.tables.parameters(self.tables.hyper(z))
        symbols = np.zeros((*parameters.mu.shape[:2], residual.latents), np.int64)
        if channels.any():
            rows = bitstream.decode_latents(
                self.tables, streams[2], self.tables.flat(parameters, channels), most
            )
            symbols[..., channels] = rows.reshape(*symbols.shape[:2], -1)
        prediction = self._predict(motion, before)
        decoded = self._complete(prediction, symbols, self.tables.offsets(parameters), reference.shape)
        return decoded, packets[at:]


def _size(shape) -> str:
    return f"{shape[1]}x{shape[0]} of {shape[2]} channels"


def unpack_video(data: bytes, model: int | None) -> tuple[int, bytes, bytes]:
    """(number of frames, file of the first, packets of the others); `model` is the checksum of the codec, None for any.

    Raises:
      UserError: no such file, one of another version, coder or codec, cut short, altered, or that claims too much.
    """
    if data[:4] != MAGIC:
        raise UserError("stream: it is no EDVC file")
    if len(data) < HEADER_BYTES:
        raise UserError(f"stream: it is cut short, {len(data)} bytes where the header has {HEADER_BYTES}")
    head, body = data[: _HEADER.size], data[HEADER_BYTES:]
    _, version, coder, count, owner, length = _HEADER.unpack(head)
    if version != VERSION:
        raise UserError(f"stream: it has version {version} of the format, this program reads {VERSION}")
    if length > len(body):
        raise UserError(f"stream: it is cut short, {len(body)} bytes where its header claims {length}")
    if zlib.crc32(head + body) != _CRC.unpack(data[_HEADER.size : HEADER_BYTES])[0]:
        raise UserError("stream: it is damaged: its checksum is another one")
    if model is not None and owner != model:
        raise UserError(f"stream: it is of another codec, {owner:08x}; that of the run is {model:08x}")
    if model is not None:
        bitstream.check_coder(coder)
    if count < 1 or (count - 1) * _PACKET.size > len(body) - length:
        raise UserError(f"stream: its header claims {count} frames in {len(data)} bytes")
    inside = bitstream.read_header(body[:length])
    if inside.height * inside.width * count > PIXELS_PER_BYTE * len(data):
        raise UserError(
            f"stream: it claims {count} frames of {inside.width}x{inside.height} in {len(data)} bytes"
        )
    return count, body[:length], body[length:]


def make_video_codec(spec: VideoSpec, params: Mapping[str, Any], intra: Codec) -> VideoCodec:
    """A video codec of trained networks.

    Args:
      spec: the network of predicted frames.
      params: of `DVC`.
      intra: the codec of first frames.

    Raises:
      UserError: an auto-regressive residual, or weights that fixed point does not hold.
    """
    if spec.residual.entropy == "autoregressive":
        raise UserError("residual: needs a codec that is not auto-regressive for video files")
    params = jax.tree.map(np.asarray, dict(params))
    motion = None
    if spec.prediction == "motion":
        motion = Tables(spec.residual, {"prior": prior_frequencies(params["motion_prior"])})
    return VideoCodec(spec, params, intra, make_tables(spec.residual, params["residual"]), motion)
