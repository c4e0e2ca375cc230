"""Files: whole numbers from the bits to the symbols, whatever adds up in what order, and what is refused."""

import dataclasses
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import jax
import numpy as np
import pytest
import small_codec as small

from jaxface.errors import UserError
from jaxface.models.compression import EDIC, Codec, bitstream, codec_bytes, integers, read_codec
from jaxface.models.compression.integers import Tables, integer_conv, scale_table
from jaxface.models.compression.networks import ENTROPIES

pytest.importorskip("constriction")
SHAPE = (32, 40, 3)


def coded(codec, shape=SHAPE, seed=1):
    height, width = (-(-side // codec.spec.multiple) * codec.spec.multiple for side in shape[:2])
    return codec.encode_symbols(*small.symbols(codec, height, width, seed), shape)


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_symbols_come_back(entropy):
    codec = small.codec(entropy)
    file = coded(codec)
    header, y, offsets = codec.decode_symbols(file.data)
    np.testing.assert_array_equal(y, file.y)
    assert (header.height, header.width, header.gray, header.weight) == (32, 40, False, 512)
    assert (offsets is not None) == (entropy == "mean_scale")
    assert 8 * len(file.data) <= 1.01 * file.bits + 8 * bitstream.HEADER_BYTES + 128


def test_bytes_are_within_half_a_percent_of_the_entropy_on_a_picture_of_some_size():
    codec = small.codec()
    file = coded(codec, (256, 384, 3))
    excess = 8 * (len(file.data) - bitstream.HEADER_BYTES) / file.bits - 1
    assert 0 <= excess < 0.005


def test_integer_tables_say_what_the_floats_say():
    codec = small.codec()
    _, z = small.symbols(codec, 64, 64)
    parameters = codec.tables.parameters(codec.tables.hyper(z))
    # What is likely under them: no floor counts, neither that of floats nor that of frequencies.
    y = np.rint(parameters.mu[..., 0] / 16)
    network = EDIC(codec.spec)

    def bits(y, z):
        told = network.apply({"params": codec.params}, z[None], method=EDIC.parameters)
        return network.apply(
            {"params": codec.params}, y[None], told, training=False, method=EDIC.latent_bits
        ).sum()

    floats = float(jax.jit(bits)(y.astype(np.float32), z.astype(np.float32)))
    rows = integers.IntegerParameters(*(values.reshape(-1, 3) for values in parameters))
    whole = codec.tables.bits(y.reshape(-1).astype(np.int64), rows, int(np.abs(y).max()))
    assert whole == pytest.approx(floats, rel=0.01)


def test_every_order_of_summation_gives_the_same():
    """Channels of the hyperprior in another order: floats would differ in most of their last places."""
    codec = small.codec()
    tables, (_, z) = codec.tables, small.symbols(codec, 32, 40)
    order = np.random.default_rng(0).permutation(codec.spec.channels)
    arrays = dict(tables.arrays)
    arrays["h_s/deconv1/kernel"] = arrays["h_s/deconv1/kernel"][:, :, order]
    np.testing.assert_array_equal(Tables(codec.spec, arrays).hyper(z[..., order]), tables.hyper(z))
    # Of some latents alone, as the decoder asks for those that have symbols.
    live = np.arange(codec.spec.latents) % 3 > 0
    rows = tables.flat(tables.parameters(tables.hyper(z)), live)
    for some, every in zip(tables.flat(tables.parameters(tables.hyper(z, live))), rows, strict=True):
        np.testing.assert_array_equal(some, every)
    # And in pieces, as threads and batches would have it: sums over every channel alone.
    layer = integers._layer(tables.arrays, "h_s/conv")
    x = np.random.default_rng(1).integers(0, 1 << 15, (6, 7, codec.spec.channels)).astype(np.float64)
    parts = [
        integer_conv(
            x[..., i : i + 1], layer._replace(kernel=layer.kernel[:, :, i : i + 1], bias=0 * layer.bias)
        )
        for i in range(codec.spec.channels)
    ]
    np.testing.assert_array_equal(sum(parts[::-1]) + layer.bias, integer_conv(x, layer))


@pytest.mark.parametrize("size", [3, 5])
def test_a_transposed_convolution_is_a_plain_one_over_zeros_between_the_values(size):
    rng = np.random.default_rng(0)
    layer = integers.IntegerLayer(
        rng.integers(-99, 99, (size, size, 3, 4)).astype(float), np.arange(4.0), 2, 0
    )
    x = rng.integers(0, 999, (3, 5, 3)).astype(float)
    spread = np.zeros((5, 9, 3))
    spread[::2, ::2] = x
    spread = np.pad(spread, ((size - 1 - size // 2, size - size // 2),) * 2 + ((0, 0),))
    windows = np.lib.stride_tricks.sliding_window_view(spread, (size, size), axis=(0, 1))
    expected = np.einsum("hwcij,ijcd->hwd", windows, layer.kernel) + layer.bias
    np.testing.assert_array_equal(integer_conv(x, layer), expected)


def test_the_integer_network_is_the_float_one_in_fixed_point():
    codec = small.codec()
    _, z = small.symbols(codec, 32, 40)
    module = EDIC(codec.spec)
    floats = module.apply({"params": codec.params}, z[None].astype(np.float32), method=lambda m, z: m.h_s(z))
    sums = codec.tables.hyper(z) / 2.0**18
    np.testing.assert_allclose(sums, floats[0], atol=0.2)
    assert np.corrcoef(sums.ravel(), np.ravel(floats))[0, 1] > 0.9999


def test_tables_rise_and_add_up():
    codec = small.codec()
    rng = np.random.default_rng(0)
    rows = integers.IntegerParameters(
        rng.integers(-400, 400, (200, 3)), rng.integers(-5000, 5000, (200, 3)), rng.integers(0, 64, (200, 3))
    )
    for most in (0, 1, 30, integers.MOST_SYMBOL):
        counts = codec.tables.frequencies(rows.rows(slice(20)) if most > 99 else rows, most)
        assert counts.shape[1] == 2 * most + 1 and counts.min() >= 1 and (counts.sum(1) == 1 << 16).all()
    prior = codec.tables.arrays["prior"]
    assert prior.min() >= 1 and (prior.sum(1) == 1 << 16).all() and prior.shape[1] % 2 == 0
    assert scale_table()[[0, -1]].tolist() == pytest.approx([0.11, 64.0])


def test_known_mixtures_are_coded_at_their_entropy():
    """20,000 symbols of three components: the coder and the tables together cost under 0.2 %."""
    codec, rng = small.codec(), np.random.default_rng(0)
    logits = np.rint(16 * np.log(rng.dirichlet(np.ones(3), 20_000))).clip(-3000)
    mu, scale = rng.integers(-80, 81, (20_000, 3)), rng.integers(10, 45, (20_000, 3))
    weights = np.exp(logits / 16)
    chosen = (rng.random((20_000, 1)) > (weights / weights.sum(1, keepdims=True)).cumsum(1)).sum(1).clip(0, 2)
    at = (np.arange(20_000), chosen)
    symbols = np.rint(mu[at] / 16 + scale_table()[scale[at]] * rng.normal(size=20_000)).astype(np.int64)
    rows = integers.IntegerParameters(logits.astype(np.int64), mu, scale)
    most = int(np.abs(symbols).max())
    data = bitstream.encode_latents(codec.tables, symbols, rows, most)
    np.testing.assert_array_equal(bitstream.decode_latents(codec.tables, data, rows, most), symbols)
    from scipy.special import ndtr

    sigma = scale_table()[scale]
    edges = [(symbols[:, None] + half - mu / 16) / sigma for half in (0.5, -0.5)]
    exact = -np.log2((weights * (ndtr(edges[0]) - ndtr(edges[1]))).sum(1) / weights.sum(1)).sum()
    assert 8 * len(data) / exact - 1 < 0.002


def test_what_the_prior_does_not_hold_is_escaped():
    codec = small.codec()
    z = np.zeros((2, 2, codec.spec.channels), np.int64)
    z[0, 0, :4] = [integers.MOST_HYPER, -integers.MOST_HYPER, codec.tables.prior_range + 1, -300]
    data = bitstream.encode_hyper(codec.tables, z)
    np.testing.assert_array_equal(bitstream.decode_hyper(codec.tables, data, 2, 2), z)
    assert codec.hyper_bits(z) == pytest.approx(8 * len(data), abs=64)


def test_a_picture_of_nothing_but_zeros():
    codec = small.codec()
    z = np.zeros((4, 5, codec.spec.channels))
    file = codec.encode_symbols(np.zeros((8, 10, codec.spec.latents)), z, SHAPE)
    header, y, _ = codec.decode_symbols(file.data)
    assert header.most == 0 and header.y_bytes == 0 and not y.any()


GOLDEN_BODY = (
    "ff4595837d869ead429606f8ff6a4d60be3997eb53ecd35bfaf00452365ec16a4fa76e470708229ee24363313c0ff1f57c"
)


def test_golden_bytes():
    """The format does not change unnoticed: a file that was written once is written again, and read."""
    codec = small.codec()
    file = coded(codec, (8, 16, 3), seed=3)
    body = file.data[bitstream.HEADER_BYTES :].hex()
    assert body == GOLDEN_BODY
    assert struct.unpack_from("<4sB", file.data) == (b"EDIC", 1)


# What a decoder on another machine may do differently.


@pytest.mark.slow
def test_another_process_with_other_threads_and_flags_decodes_the_same_symbols(tmp_path):
    codec = small.codec()
    file = coded(codec)
    (tmp_path / "codec").write_bytes(codec_bytes(codec))
    (tmp_path / "file").write_bytes(file.data)
    code = (
        "import sys, zlib, pathlib\n"
        "from jaxface.models.compression import read_codec\n"
        "codec = read_codec(pathlib.Path(sys.argv[1]))\n"
        "_, y, _ = codec.decode_symbols(pathlib.Path(sys.argv[2]).read_bytes())\n"
        "print(zlib.crc32(y.tobytes()))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "codec", tmp_path / "file"],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "XLA_FLAGS": "--xla_backend_optimization_level=3",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.stdout.strip() == str(zlib.crc32(file.y.tobytes())), told.stderr


def test_pixels_differ_by_a_level_at_most_between_batch_sizes_and_compilers():
    codec = small.codec()
    file = coded(codec)
    header, y, _ = codec.decode_symbols(file.data)
    picture = codec.decode(file.data)
    assert picture.shape == SHAPE and picture.dtype == np.uint8
    latents = np.repeat(y.astype(np.float32)[None], 8, axis=0)
    synthesize = jax.jit(lambda y: codec.network.apply({"params": codec.params}, y, method=EDIC.synthesize))
    options = {"xla_backend_optimization_level": 3, "xla_cpu_enable_fast_math": True}
    other = synthesize.lower(latents).compile(compiler_options=options)(latents)
    levels = np.rint(np.clip(other, 0, 1) * 255)[:, : header.height, : header.width]
    assert np.abs(levels - picture).max() <= 1


# Bad input.


def resealed(data: bytes, **fields) -> bytes:
    """A file with other claims and a right checksum: what somebody could write who means harm."""
    layout = struct.Struct("<4sBHBHHfHIII")
    names = (
        "magic",
        "version",
        "coder",
        "flags",
        "height",
        "width",
        "weight",
        "most",
        "z_bytes",
        "y_bytes",
        "model",
    )
    values = dict(zip(names, layout.unpack(data[: layout.size]), strict=True)) | fields
    head, body = layout.pack(*values.values()), data[bitstream.HEADER_BYTES :]
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def test_altered_and_truncated_files_are_refused():
    codec = small.codec()
    data = coded(codec).data
    for at in (0, 4, 9, 30, bitstream.HEADER_BYTES, len(data) // 2, len(data) - 1):
        altered = bytearray(data)
        altered[at] ^= 0xFF
        with pytest.raises(UserError, match=r"^stream: "):
            codec.decode(bytes(altered))
    for length in (0, 3, 20, bitstream.HEADER_BYTES, len(data) - 1):
        with pytest.raises(UserError, match=r"^stream: "):
            codec.decode(data[:length])
    with pytest.raises(UserError, match="it is no EDIC file"):
        codec.decode(b"\x89PNG" + data)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 2}, "version 2 of the format, this program reads 1"),
        ({"model": 7}, "of another codec, 00000007; that of the run is"),
        ({"coder": 0x0901}, "written with constriction 9.1, installed is"),
        ({"height": 8192, "width": 8192}, "claims 8192x8192 pixels in"),
        ({"height": 65535}, "the limit is 8192x8192"),
        ({"height": 0}, "claims 40x0 pixels"),
        ({"y_bytes": 1 << 31}, "cut short, .* where its header claims"),
        ({"most": 60000}, "makes no sense"),
        ({"flags": 9}, "makes no sense"),
    ],
)
def test_claims_of_a_header_are_refused_before_anything_is_allocated(fields, words):
    codec = small.codec()
    data = resealed(coded(codec).data, **fields)
    tracemalloc.start()
    with pytest.raises(UserError, match=words):
        codec.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_wrong_symbols_with_a_right_checksum_end_in_a_picture_or_a_line():
    """A stream that means harm cannot be told from a picture of noise, but it costs no more than a picture of its size."""
    codec, rng = small.codec(), np.random.default_rng(0)
    data = coded(codec).data
    for _ in range(20):
        body = bytearray(data[bitstream.HEADER_BYTES :])
        for at in rng.integers(0, len(body), 8):
            body[at] = rng.integers(256)
        try:
            _, y, _ = codec.decode_symbols(resealed(data[: bitstream.HEADER_BYTES] + bytes(body)))
            assert y.shape == (8, 10, codec.spec.latents)
        except UserError as error:
            assert str(error).startswith("stream: it is damaged")


def test_a_flat_picture_has_a_byte_for_every_thousand_pixels():
    codec = small.codec()
    shape = (256, 256, 3)
    file = codec.encode_symbols(
        np.zeros((64, 64, codec.spec.latents)), np.zeros((32, 32, codec.spec.channels)), shape
    )
    assert len(file.data) * bitstream.PIXELS_PER_BYTE >= 256 * 256
    codec.decode_symbols(file.data)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((16, 16, 3), np.uint16), "image: needs 8 bits a channel, got uint16"),
        (np.zeros((16, 16, 4), np.uint8), "image: needs an image without transparency, got 4 channels"),
        (np.zeros((16, 16), np.uint8), "image: needs an RGB or gray image"),
        (
            np.zeros((7, 16, 3), np.uint8),
            "image: needs sides of at least 8 pixels, the stride of this network, got 16x7",
        ),
        (np.zeros((16, 9000, 1), np.uint8), "image: needs sides of at most 8192 pixels, got 9000x16"),
    ],
)
def test_pictures_that_cannot_be_encoded(image, words):
    with pytest.raises(UserError, match=words):
        small.codec().encode(image)


@pytest.mark.parametrize("shape", [(9, 13, 3), (11, 10, 1)])
def test_odd_sizes_are_padded_and_cropped_and_gray_stays_gray(shape):
    codec = small.codec()
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = codec.encode(image)
    assert codec.decode(file.data).shape == shape
    np.testing.assert_array_equal(codec.decode_symbols(file.data)[1], file.y)


def test_a_codec_is_one_file_that_knows_when_it_was_changed(tmp_path):
    codec, path = small.codec(), tmp_path / "codec.safetensors"
    path.write_bytes(codec_bytes(codec))
    again = read_codec(path)
    assert again.checksum == codec.checksum and again.spec == codec.spec and again.weight == 512
    other = dataclasses.replace(codec, params={**codec.params, "g_s": small.params_of(codec.spec, 1)["g_s"]})
    assert Codec(other.spec, other.params, other.tables, 512.0).checksum != codec.checksum
    data = bytearray(path.read_bytes())
    for changed, words in (
        (data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], "is damaged: its checksum is another one"),
        (data[:100], "cannot be read"),
        (b"hello", "cannot be read"),
    ):
        path.write_bytes(bytes(changed))
        with pytest.raises(UserError, match=words):
            read_codec(path)


@pytest.mark.parametrize("change", ["spec", "prior", "table", "weight"])
def test_a_codec_that_does_not_hold_what_it_describes(tmp_path, change):
    """A right checksum says nothing of a file that means harm."""
    codec, path = small.codec(), tmp_path / "codec.safetensors"
    arrays = dict(codec.tables.arrays)
    spec, params = codec.spec, codec.params
    if change == "spec":
        spec = dataclasses.replace(spec, channels=1 << 20)
    elif change == "prior":
        arrays["prior"] = arrays["prior"] * 0
    elif change == "table":
        arrays["cdf"] = arrays["cdf"][:1]
    else:
        params = {**params, "g_s": {}}
    path.write_bytes(codec_bytes(Codec(spec, params, Tables(spec, arrays), 512.0)))
    with pytest.raises(UserError, match="does not hold the network that it describes"):
        read_codec(path)


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_shapes_of_the_tables_are_known(entropy):
    codec = small.codec(entropy)
    shapes = {name: leaf.shape for name, leaf in codec.tables.arrays.items() if name != "prior"}
    assert shapes == integers.layer_shapes(codec.spec)


def test_weights_that_fixed_point_does_not_hold():
    codec = small.codec()
    params = dict(codec.params)
    params["h_s"] = jax.tree.map(np.array, params["h_s"])
    params["h_s"]["conv"]["kernel"][0, 0, 0, 0] = 8.0
    with pytest.raises(UserError, match="h_s/conv needs finite weights below 8"):
        integers.make_tables(codec.spec, params)
