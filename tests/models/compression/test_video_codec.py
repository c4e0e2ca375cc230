"""Video files: frames there and back, and what is refused."""

import dataclasses
import functools
import struct
import zlib

import numpy as np
import pytest
import small_codec as small

from jaxface.errors import UserError
from jaxface.models.compression.video_codec import HEADER_BYTES, make_video_codec

pytest.importorskip("constriction")


@functools.cache
def codec():
    return make_video_codec(small.VIDEO, small.video_params(), small.codec())


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (13, 18, 3), np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def file(frames):
    return codec().encode(frames)


def test_frames_come_back_as_the_encoder_saw_them(frames, file):
    decoded = list(codec().decode(file))
    assert [frame.shape for frame in decoded] == [(13, 18, 3)] * 3
    # The encoder's own references, frame by frame: the bits alone decide.
    reference = codec().intra.decode(codec().intra.encode(frames[0]).data)
    np.testing.assert_array_equal(decoded[0], reference)
    for frame, wanted in zip(frames[1:], decoded[1:], strict=True):
        _, reference = codec()._encode_frame(frame, reference)
        assert np.abs(reference.astype(int) - wanted).max() <= 1
    assert len(list(codec().decode(codec().encode(frames[:1])))) == 1


def test_files_that_are_cut_or_changed_are_refused(file):
    for at in (0, 4, 8, HEADER_BYTES, len(file) // 2, len(file) - 1):
        altered = bytearray(file)
        altered[at] ^= 0xFF
        with pytest.raises(UserError, match=r"^stream: "):
            list(codec().decode(bytes(altered)))
    for length in (0, 10, HEADER_BYTES, len(file) - 1):
        with pytest.raises(UserError, match=r"^stream: "):
            list(codec().decode(file[:length]))
    other = dataclasses.replace(codec(), intra=dataclasses.replace(small.codec(), weight=1.0))
    with pytest.raises(UserError, match="of another codec"):
        list(other.decode(file))


def test_claims_are_held_against_the_length(file):
    layout = struct.Struct("<4sBHHII")
    fields = list(layout.unpack_from(file))
    for count, words in ((60_000, "claims 60000 frames in"), (0, "claims 0 frames in")):
        fields[3] = count
        head, body = layout.pack(*fields), file[HEADER_BYTES:]
        data = head + struct.pack("<I", zlib.crc32(head + body)) + body
        with pytest.raises(UserError, match=words):
            list(codec().decode(data))


def test_frames_of_different_sizes_are_refused(frames):
    for others, words in (
        (
            [frames[0][:9]],
            "frames: need one size, RGB: frame 1 is 18x9 of 3 channels, the first 18x13 of 3 channels",
        ),
        ([frames[0][..., :1]], "frame 1 is 18x13 of 1 channels"),
        ([frames[0].astype(np.uint16)], "image: needs 8 bits a channel, got uint16"),
    ):
        with pytest.raises(UserError, match=words):
            codec().encode([frames[0], *others])
    with pytest.raises(UserError, match="frames: needs 1 to 65535, got 0"):
        codec().encode([])
    with pytest.raises(UserError, match="residual: needs a codec that is not auto-regressive"):
        make_video_codec(
            dataclasses.replace(small.VIDEO, residual=small.codec("autoregressive").spec), {}, small.codec()
        )
