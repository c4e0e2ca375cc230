"""Binary convolution against integers: every layout, every back-end, every refusal, and a network from training to bits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from pallas_kernels import aot, common
from pallas_kernels import binary_conv as bc
from pallas_kernels.binary_conv import api, gpu, packing, reference, tpu, xla

KERNELS = ["pallas_tpu_interpret", "pallas_gpu_interpret"]


def signs(x):
    return np.where(np.asarray(x) >= 0, 1, -1)


def integers(x, w, strides, pads, pad_mode):
    """The convolution of signs with signs in numpy's int64."""
    outside = {"zero": 0, "minus_one": -1, "plus_one": 1}[pad_mode]
    x = np.pad(signs(x).astype(np.int64), ((0, 0), *pads, (0, 0)), constant_values=outside)
    (sh, sw), (kh, kw) = strides, w.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(1, 2))[:, ::sh, ::sw]
    return np.einsum("nhwcij,ijco->nhwo", windows, signs(w).astype(np.int64))


def random(seed, shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def words(x):
    """Packed signs along the last axis, in numpy: shapes differ in every test, and each would compile."""
    x = np.asarray(x) >= 0
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 32)])
    return jnp.asarray(np.ascontiguousarray(np.packbits(x, axis=-1, bitorder="little")).view(np.uint32))


def convolve(xp, wp, **options):
    return jax.jit(functools.partial(bc.binary_conv2d, **options))(xp, wp)


def block(given_, **options):
    return jax.jit(functools.partial(bc.binary_conv2d_block, **options))(*given_)


def fixture():
    h, w, c = np.ogrid[:3, :3, :32]
    x = np.where((7 * h + 5 * w + c) % 3 == 0, 1.0, -1.0)[None]
    i, j, k, o = np.ogrid[:3, :3, :32, :2]
    return x, np.where((i + 2 * j + 3 * k + o) % 5 < 2, 1.0, -1.0)


class TestPacking:
    def test_words(self):
        a, b = jnp.array([0b1011], jnp.uint32), jnp.array([0b0110], jnp.uint32)
        assert bc.popcount_dot(a, b, 4) == -2
        counted = [int(lax.population_count(v)[0]) for v in (a, b, a & b)]
        assert 4 - 2 * counted[0] - 2 * counted[1] + 4 * counted[2] == -2

    def test_fixture(self):
        x, w = fixture()
        assert np.asarray(bc.pack_bits(jnp.asarray(x)))[0, 0, :, 0].tolist() == [
            0x49249249, 0x92492492, 0x24924924,
        ]  # fmt: skip
        packed = np.asarray(bc.pack_weights(jnp.asarray(w)))
        assert packed.shape == (3, 3, 2, 1)
        assert packed[0, :, 0, 0].tolist() == [0x4A5294A5, 0x94A5294A, 0x294A5294]

    @pytest.mark.parametrize("word", [jnp.uint8, jnp.uint16, jnp.uint32])
    @pytest.mark.parametrize("axis", [0, -1])
    def test_round_trip(self, word, axis):
        x = random(0, (33, 2, 41))
        packed = bc.pack_bits(jnp.asarray(x), axis, word)
        assert packed.dtype == word
        assert packed.shape[axis] == common.cdiv(x.shape[axis], jnp.dtype(word).itemsize * 8)
        back = bc.unpack_bits(packed, x.shape[axis], axis, jnp.int8)
        np.testing.assert_array_equal(back, signs(x))

    def test_by_products_as_on_tpus(self):
        x = random(0, (3, 5, 96))
        packed = packing._pack_by_products(jnp.asarray(x >= 0))
        np.testing.assert_array_equal(packed, words(x))
        ones = words(np.ones((3, 5, 96)))  # every bit of a word at once
        np.testing.assert_array_equal(packing._pack_by_products(jnp.ones((3, 5, 96), bool)), ones)
        np.testing.assert_array_equal(packing._unpack_by_products(packed, 70), signs(x)[..., :70])

    def test_least_significant_bit_first_and_signs_of_zero(self):
        x = jnp.array([1.0, -1.0, 0.0, -0.0, jnp.nan, -2.0])
        assert bc.pack_bits(x, word=jnp.uint8) == 0b001101
        assert bc.pack_bits(jnp.array([True, False, True]), word=jnp.uint8) == 0b101
        assert bc.pack_bits(jnp.array([-1, 0, 5])) == 0b110

    def test_padding_bits(self):
        x, w = random(1, (4, 33)), random(2, (33, 5))
        xp, wp = bc.pack_bits(jnp.asarray(x)), bc.pack_weights(jnp.asarray(w))
        # XOR: equal padding bits, whether 0 or 1.
        ones = jnp.array([0, 0xFFFFFFFE], jnp.uint32)
        expected = signs(x) @ signs(w)
        for padding in (0 * ones, ones):
            got = bc.popcount_dot((xp | padding)[:, None], wp | padding, 33)
            np.testing.assert_array_equal(got, expected)
        count = lambda v: lax.population_count(v).astype(jnp.int32).sum(-1)  # noqa: E731
        got = 33 - 2 * count(xp)[:, None] - 2 * count(wp) + 4 * count(xp[:, None] & wp)
        np.testing.assert_array_equal(got, expected)

    @pytest.mark.parametrize("k", [64, 61])
    def test_plane_major(self, k):
        x, w = random(3, (6, k)), jnp.asarray(signs(random(4, (k, 5))), jnp.int8)
        packed = bc.pack_plane_major(jnp.asarray(x))
        size = common.cdiv(k, 8)
        element = 3 * size + 2
        np.testing.assert_array_equal((np.asarray(packed)[:, 2] >> 3) & 1, x[:, element] >= 0)
        expected = signs(x) @ np.asarray(w, np.int32)
        np.testing.assert_array_equal(bc.plane_major_dot(packed, w), expected)
        got, accumulator = bc.no_shift_dot(packed, w)
        np.testing.assert_array_equal(got, expected)
        assert not np.any(np.asarray(accumulator) % 128)

    def test_parity_bound_and_negation(self):
        x, w = random(5, (7, 77)), random(6, (77, 9))
        xp, wp = words(x), words(w.T)
        dense = jax.jit(lambda xp, wp: bc.binary_dense(xp, wp, 77))
        dot = np.asarray(dense(xp, wp))
        assert np.all((dot - 77) % 2 == 0)
        assert np.abs(dot).max() <= 77
        np.testing.assert_array_equal(dense(words(-x), wp), -dot)


class TestFixture:
    @pytest.mark.parametrize("implementation", [None, *KERNELS])
    def test_values(self, implementation):
        x, w = fixture()
        xp, wp = words(x), words(np.swapaxes(w, 2, 3))
        options = {"channels": 32, "implementation": implementation}
        zero = np.asarray(convolve(xp, wp, **options))[0]
        assert zero[..., 0].tolist() == [[8, 14, 4], [12, 26, 14], [10, 10, 10]]
        assert zero[..., 1].tolist() == [[4, 14, 8], [10, 20, 10], [10, 14, 12]]
        minus = np.asarray(convolve(xp, wp, **options, pad_mode="minus_one"))[0]
        assert minus[..., 0].tolist() == [[40, 34, 36], [30, 26, 34], [42, 30, 44]]
        correction = jax.jit(lambda wp: bc.padding_correction(wp, 3, 3, channels=32))(wp)
        assert correction[0, 0].tolist() == [-32, -30]
        np.testing.assert_array_equal(minus + correction, zero)

    def test_sums_of_taps(self):
        _, w = fixture()
        assert w.sum(2)[..., 0].tolist() == [[-6, -6, -8], [-6, -6, -6], [-6, -8, -6]]


CASES = [
    # N, H, W, C, O, kernel, strides, padding, pad_mode
    (2, 7, 7, 33, 5, (3, 3), 1, "SAME", "zero"),
    (1, 5, 8, 64, 40, (3, 3), 2, "SAME", "zero"),  # SAME pads one side only
    (1, 5, 7, 96, 33, (1, 1), (2, 1), "VALID", "minus_one"),
    (1, 4, 6, 160, 7, (5, 5), 1, ((2, 1), (0, 3)), "plus_one"),
    (1, 3, 4, 512, 66, (3, 3), 1, "SAME", "zero"),
    (3, 3, 1, 20, 3, (2, 1), (1, 2), ((0, 1), (0, 0)), "zero"),
    (2, 4, 4, 128, 130, (1, 1), 1, "SAME", "zero"),
]


def arguments(case, seed=0):
    n, h, w, c, o, kernel, strides, padding, pad_mode = case
    x, weights = random(seed, (n, h, w, c)), random(seed + 1, (*kernel, c, o))
    xp, wp = words(x), words(np.swapaxes(weights, 2, 3))
    options = {"channels": c, "strides": strides, "padding": padding, "pad_mode": pad_mode}
    return x, weights, xp, wp, options


def geometry_of(xp, wp, options):
    return api.geometry_of(
        xp, wp, options["channels"], options["strides"], options["padding"], options["pad_mode"]
    )


class TestConvolution:
    @pytest.mark.parametrize("case", CASES)
    def test_reference_and_xla_methods_are_the_integers(self, case):
        x, w, xp, wp, options = arguments(case)
        geometry = geometry_of(xp, wp, options)
        expected = integers(x, w, geometry.strides, geometry.pads, geometry.pad_mode)
        np.testing.assert_array_equal(
            jax.jit(reference.convolve, static_argnums=2)(xp, wp, geometry), expected
        )
        for name, method in xla.METHODS.items():
            got = jax.jit(method, static_argnums=2)(xp, wp, geometry)
            assert got.dtype == jnp.int32, name
            np.testing.assert_array_equal(got, expected, err_msg=name)

    @pytest.mark.parametrize("channels", [32, 64, 96, 512])
    @pytest.mark.parametrize("kernel", [1, 3])
    def test_channels(self, channels, kernel):
        for strides, pad_mode in ((1, "zero"), (2, "zero"), (2, "minus_one")):
            case = (1, 5, 7, channels, 6, (kernel, kernel), strides, "SAME", pad_mode)
            x, w, xp, wp, options = arguments(case)
            geometry = geometry_of(xp, wp, options)
            expected = integers(x, w, geometry.strides, geometry.pads, pad_mode)
            np.testing.assert_array_equal(convolve(xp, wp, **options), expected)

    @given(st.data())
    @settings(max_examples=6, deadline=None)
    def test_any_shape(self, data):
        draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
        kernel = (draw(1, 3), draw(1, 3))
        padding = data.draw(st.sampled_from(["SAME", "VALID", ((1, 0), (0, 2))]))
        case = (
            draw(1, 2), draw(3, 7), draw(3, 7), draw(1, 70), draw(1, 9), kernel,
            (draw(1, 3), draw(1, 3)), padding, data.draw(st.sampled_from(["zero", "minus_one", "plus_one"])),
        )  # fmt: skip
        x, w, xp, wp, options = arguments(case, draw(0, 99))
        geometry = geometry_of(xp, wp, options)
        expected = integers(x, w, geometry.strides, geometry.pads, geometry.pad_mode)
        np.testing.assert_array_equal(convolve(xp, wp, **options), expected)

    @pytest.mark.parametrize("implementation", KERNELS)
    @pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[5]])
    def test_kernels(self, implementation, case):
        x, w, xp, wp, options = arguments(case)
        geometry = geometry_of(xp, wp, options)
        got = convolve(xp, wp, **options, implementation=implementation)
        np.testing.assert_array_equal(got, integers(x, w, geometry.strides, geometry.pads, geometry.pad_mode))

    @pytest.mark.slow
    @pytest.mark.parametrize("implementation", KERNELS)
    @pytest.mark.parametrize("case", [CASES[2], CASES[3], CASES[4], CASES[6]])
    def test_kernels_at_more_shapes(self, implementation, case):
        self.test_kernels(implementation, case)

    def test_bfloat16_planes_of_older_tpus(self):
        x, w, xp, wp, options = arguments(CASES[0])
        geometry = geometry_of(xp, wp, options)
        interpret = common.interpret("pallas_tpu_interpret")
        planes, sums = tpu.matrix_types("TPU v4")
        got = tpu.convolve(xp, wp, geometry, interpret=interpret, types=(planes, sums))
        assert (planes, sums) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(got, integers(x, w, geometry.strides, geometry.pads, "zero"))

    def test_correction_for_strides_and_uneven_padding(self):
        for strides, padding in ((2, "SAME"), ((1, 3), ((0, 2), (1, 0)))):
            case = (1, 6, 8, 40, 3, (3, 3), strides, padding, "zero")
            _, _, xp, wp, options = arguments(case)

            @jax.jit
            def corrected_and_zero(xp, wp, options=options, strides=strides, padding=padding):
                minus = bc.binary_conv2d(xp, wp, **(options | {"pad_mode": "minus_one"}))
                table = bc.padding_correction(wp, 6, 8, channels=40, strides=strides, padding=padding)
                return minus + table, bc.binary_conv2d(xp, wp, **options)

            np.testing.assert_array_equal(*corrected_and_zero(xp, wp))

    @pytest.mark.parametrize("implementation", [None, *KERNELS])
    def test_dense(self, implementation):
        x, w = random(0, (3, 5, 75)), random(1, (75, 11))
        xp, wp = words(x), words(w.T)
        got = jax.jit(lambda xp, wp: bc.binary_dense(xp, wp, 75, implementation=implementation))(xp, wp)
        np.testing.assert_array_equal(got, signs(x) @ signs(w))

    def test_transformations(self):
        _, _, xp, wp, options = arguments(CASES[0])
        call = functools.partial(bc.binary_conv2d, **options)
        expected = call(xp, wp)
        np.testing.assert_array_equal(convolve(xp, wp, **options), expected)
        mapped = jax.jit(jax.vmap(lambda image: call(image[None], wp)[0]))(xp)
        np.testing.assert_array_equal(mapped, expected)

    def test_cpu_method_is_the_processor_s(self):
        assert xla.method() == ("int8" if "amx_int8" in common.cpu_flags() else "popcount")


def block_arguments(case, seed=0):
    _, _, xp, wp, options = arguments(case, seed)
    geometry = geometry_of(xp, wp, options)
    outputs = (geometry.outputs,)
    scale = random(seed + 2, outputs) / np.sqrt(geometry.products)
    others = [random(seed + 3 + i, outputs) for i in range(3)]
    shape = geometry.batch, geometry.out_height, geometry.out_width, geometry.outputs
    residual = jnp.asarray(random(seed + 6, shape), jnp.bfloat16)
    shift, prelu, bias = (jnp.asarray(v) for v in others)
    return geometry, (xp, wp, jnp.asarray(scale), shift, residual, prelu, bias), options


def check_block(got, arguments, geometry):
    xp, wp, scale, shift, residual, prelu, bias = (
        None if v is None else np.asarray(v, np.uint32 if v.dtype == jnp.uint32 else np.float64)
        for v in arguments
    )
    convolve_ = jax.jit(reference.convolve, static_argnums=2)
    dot = np.asarray(convolve_(jnp.asarray(xp), jnp.asarray(wp), geometry), np.float64)
    t = dot * scale + shift
    t = t if residual is None else t + residual
    t = t if prelu is None else np.where(t >= 0, t, t * prelu)
    out, bits = got
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), t, rtol=2**-8, atol=1e-5)
    # The signs are those of what was stored, exactly.
    moved = np.asarray(out, np.float32) + (0 if bias is None else np.asarray(bias, np.float32))
    np.testing.assert_array_equal(bits, words(moved))


class TestBlock:
    @pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]])
    def test_float64(self, case):
        geometry, given_, options = block_arguments(case)
        check_block(block(given_, **options), given_, geometry)

    def test_optional_arguments(self):
        geometry, given_, options = block_arguments(CASES[0])
        bare = (*given_[:4], None, None, None)
        check_block(block(bare, **options), bare, geometry)

    @pytest.mark.parametrize("implementation", KERNELS)
    @pytest.mark.parametrize("case", [CASES[0]])
    def test_kernels(self, implementation, case):
        _, given_, options = block_arguments(case)
        got = block(given_, **options, implementation=implementation)
        expected = block(given_, **options)
        assert got[0].dtype == jnp.bfloat16 and got[1].dtype == jnp.uint32
        np.testing.assert_allclose(*(np.asarray(v[0], np.float32) for v in (got, expected)), rtol=2**-7)
        moved = np.asarray(got[0], np.float32) + np.asarray(given_[-1])
        np.testing.assert_array_equal(got[1], words(moved))

    @pytest.mark.slow
    @pytest.mark.parametrize("implementation", KERNELS)
    @pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[6]])
    def test_kernels_at_more_shapes(self, implementation, case):
        self.test_kernels(implementation, case)

    @pytest.mark.parametrize("implementation", KERNELS)
    def test_kernels_without_optional_arguments(self, implementation):
        _, given_, options = block_arguments((1, 2, 3, 32, 40, (1, 1), 1, "VALID", "zero"))
        bare = (*given_[:4], None, None, None)
        got = block(bare, **options, implementation=implementation)
        expected = block(bare, **options)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


class TestThresholds:
    def normalization(self, alpha, gamma, beta, mean, variance):
        arrays = (np.atleast_1d(np.asarray(v, np.float32)) for v in (alpha, gamma, beta, mean, variance))
        return jax.jit(functools.partial(bc.fold_batch_norm, epsilon=0.0))(*arrays)

    def test_sign_of_batch_norm(self):
        rng = np.random.default_rng(0)
        gamma = rng.standard_normal(40)
        scale, shift = self.normalization(
            rng.uniform(0.5, 2, 40), gamma, rng.standard_normal(40), 20 * rng.standard_normal(40),
            rng.uniform(1, 400, 40),
        )  # fmt: skip
        dot = jnp.arange(-577, 578)[:, None]

        @jax.jit
        def both(scale, shift):
            bits = bc.threshold_bits(dot, *bc.sign_thresholds(scale, shift))
            return bits, bc.pack_bits(scale * dot.astype(jnp.float32) + shift)

        np.testing.assert_array_equal(*both(scale, shift))

    def test_ties_give_plus_one(self):
        # θ = (μ - β·σ/γ)/α = (6 ∓ 4)/0.5: 4 where γ > 0, 20 where γ < 0.
        scale, shift = self.normalization([0.5, 0.5], [1, -1], [2, 2], [6, 6], [4, 4])
        thresholds, rising = bc.sign_thresholds(scale, shift)
        assert thresholds.tolist() == [4, 20]
        assert rising.tolist() == [True, False]
        dot = jnp.array([[3, 19], [4, 20], [5, 21]])
        assert bc.threshold_bits(dot, thresholds, rising).tolist() == [[0b10], [0b11], [0b01]]

    def test_between_integers(self):
        scale, shift = jnp.array([2.0, -2.0]), jnp.array([-5.0, 5.0])  # θ = 2.5
        assert bc.sign_thresholds(scale, shift)[0].tolist() == [3, 2]

    def test_no_slope_and_out_of_range(self):
        scale, shift = jnp.array([0.0, 0.0, 1e-9, 1e-9]), jnp.array([1.0, -1.0, 1.0, -1.0])
        bits = bc.threshold_bits(jnp.array([[-5000] * 4, [5000] * 4]), *bc.sign_thresholds(scale, shift))
        assert bits.tolist() == [[0b0101], [0b0101]]

    def test_agrees_with_the_block(self):
        geometry, given_, options = block_arguments(CASES[0])
        xp, wp, scale, shift = given_[:4]

        @jax.jit
        def both(xp, wp, scale, shift):
            dot = bc.binary_conv2d(xp, wp, **options)
            bits = bc.threshold_bits(dot, *bc.sign_thresholds(scale, shift))
            return bits, bc.binary_conv2d_block(xp, wp, scale, shift, **options)[1]

        np.testing.assert_array_equal(*both(xp, wp, scale, shift))


class TestTraining:
    def float_reference(self, x, w, alpha, ste, pad_mode="zero", strides=(1, 1)):
        """The same function built from identities whose derivative is F'."""

        def through(sign, value, slope):  # value: sign; derivative: slope
            return lax.stop_gradient(sign - slope * value) + lax.stop_gradient(slope) * value

        slope = {
            "clip": jnp.abs(x) <= 1,
            "approx_sign": jnp.maximum(2 - 2 * jnp.abs(x), 0),
            "identity": jnp.ones_like(x),
        }[ste]
        bx = through(jnp.where(x >= 0, 1.0, -1.0), x, slope.astype(x.dtype))
        bw = through(jnp.where(w >= 0, 1.0, -1.0), w, (jnp.abs(w) <= 1).astype(w.dtype))
        pads = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, "SAME")
        outside = {"zero": 0, "minus_one": -1, "plus_one": 1}[pad_mode]
        bx = jnp.pad(bx, ((0, 0), *pads, (0, 0)), constant_values=outside)
        y = lax.conv_general_dilated(bx, bw, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y * alpha

    @pytest.mark.parametrize("ste", ["clip", "approx_sign", "identity"])
    def test_gradients(self, ste):
        x, w, alpha = (jnp.asarray(random(i, s)) for i, s in enumerate([(2, 5, 6, 35), (3, 3, 35, 4), (4,)]))
        dy = jnp.asarray(random(9, (2, 5, 6, 4)))
        gradients = self.compare(
            lambda *a: bc.binary_conv2d_ste(*a, ste),
            lambda *a: self.float_reference(*a, ste),
            (x, w, alpha),
            dy,
        )
        if ste != "identity":
            assert not np.any(np.asarray(gradients[0])[np.abs(np.asarray(x)) > 1])

    def compare(self, function, expected, arguments_, dy):
        def both(f):
            def call(*a):
                y, back = jax.vjp(f, *a[:-1])
                return y, back(a[-1])

            return jax.jit(call)(*arguments_, dy)

        (y, gradients), (expected_y, expected_gradients) = both(function), both(expected)
        np.testing.assert_allclose(y, expected_y, rtol=1e-5, atol=1e-4)
        for a, b in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
        return gradients

    @pytest.mark.parametrize("pad_mode", ["minus_one", "plus_one"])
    def test_padding_and_strides(self, pad_mode):
        x, w, alpha = (jnp.asarray(random(i, s)) for i, s in enumerate([(1, 5, 6, 8), (3, 3, 8, 4), (4,)]))
        call = functools.partial(bc.binary_conv2d_ste, strides=2, pad_mode=pad_mode)
        expected = lambda *a: self.float_reference(*a, "clip", pad_mode, (2, 2))  # noqa: E731
        self.compare(call, expected, (x, w, alpha), jnp.asarray(random(9, (1, 3, 3, 4))))

    def test_weight_gradient_knows_only_signs(self):
        x, w, alpha = (jnp.asarray(random(i, s)) for i, s in enumerate([(1, 4, 4, 33), (3, 3, 33, 4), (4,)]))
        gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(bc.binary_conv2d_ste(x, w, alpha) ** 2), argnums=1))
        np.testing.assert_array_equal(gradient(x, w), gradient(3 * x, w))

    def test_matches_packed_inference(self):
        x, w = random(0, (2, 5, 5, 40)), random(1, (3, 3, 40, 6))
        alpha = jnp.asarray(np.abs(w).mean((0, 1, 2)))

        @jax.jit
        def both(x, w):
            packed = bc.binary_conv2d(bc.pack_bits(x), bc.pack_weights(w), channels=40)
            return bc.binary_conv2d_ste(x, w, alpha), packed * alpha

        trained, packed = both(x, w)
        np.testing.assert_allclose(trained, packed, rtol=1e-6)

    @pytest.mark.parametrize(("ste", "bits"), [("clip", 2), ("identity", 1)])
    def test_bits_kept_for_the_backward_pass(self, ste, bits):
        x, w, alpha = jnp.ones((2, 8, 8, 64)), jnp.ones((3, 3, 64, 8)), jnp.ones(8)
        _, back = jax.vjp(lambda x: bc.binary_conv2d_ste(x, w, alpha, ste), x)
        kept = sum(v.nbytes for v in jax.tree.leaves(back) if v.dtype == jnp.uint32)
        assert kept == x.size * bits // 8
        assert not any(v.shape == x.shape for v in jax.tree.leaves(back))

    def test_bfloat16(self):
        x, w, alpha = jnp.ones((1, 4, 4, 32), jnp.bfloat16), jnp.ones((3, 3, 32, 4)), jnp.ones(4)

        @jax.jit
        def value_and_gradients(*arguments):
            y, back = jax.vjp(bc.binary_conv2d_ste, *arguments)
            return y, back(y)

        y, gradients = value_and_gradients(x, w, alpha)
        assert y.dtype == jnp.bfloat16
        assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
        assert y[0, 1, 1, 0] == 288


class TestNetwork:
    def test_digits_from_training_to_bits(self):
        datasets = pytest.importorskip("sklearn.datasets")
        digits = datasets.load_digits()
        images = jnp.asarray(digits.images[..., None] / 8.0 - 1.0, jnp.float32)
        labels = jnp.asarray(digits.target)
        test = slice(1000, None)
        rng = np.random.default_rng(0)
        params = {
            "stem": 0.5 * rng.standard_normal((3, 3, 1, 32)),
            "w1": 0.1 * rng.standard_normal((3, 3, 32, 32)),
            "a1": np.full(32, 0.05),
            "b1": np.zeros(32),
            "slope": np.full(32, 0.25),
            "w2": 0.1 * rng.standard_normal((3, 3, 32, 32)),
            "a2": np.full(32, 0.05),
            "head": 0.1 * rng.standard_normal((32 * 16, 10)),
        }
        params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), params)

        def stem(p, x):
            return lax.conv_general_dilated(
                x, p["stem"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        def forward(p, x):
            x = stem(p, x)
            t = bc.binary_conv2d_ste(x, p["w1"], p["a1"]) + p["b1"] + x.astype(jnp.bfloat16)
            t = jnp.where(t >= 0, t, t * p["slope"]).astype(jnp.bfloat16).astype(jnp.float32)
            y = bc.binary_conv2d_ste(t, p["w2"], p["a2"], strides=2)
            return y.reshape(len(x), -1) @ p["head"]

        def packed(p, x):
            x = stem(p, x)
            w1, w2 = bc.pack_weights(p["w1"]), bc.pack_weights(p["w2"])
            _, bits = bc.binary_conv2d_block(
                bc.pack_bits(x), w1, p["a1"], p["b1"], x.astype(jnp.bfloat16), p["slope"], channels=32
            )
            y = bc.binary_conv2d(bits, w2, channels=32, strides=2) * p["a2"]
            return y.reshape(len(x), -1) @ p["head"]

        @jax.jit
        def step(p, x, label):
            def loss(p):
                return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(forward(p, x)), label[:, None], 1))

            return jax.tree.map(lambda v, g: v - 0.05 * g, p, jax.grad(loss)(p))

        images, labels = np.asarray(images), np.asarray(labels)
        for start in range(0, 3000, 100):
            batch = np.arange(start, start + 100) % 1000
            params = step(params, images[batch], labels[batch])
        real = jax.jit(forward)(params, images[test]).argmax(-1)
        bits = jax.jit(packed)(params, images[test]).argmax(-1)
        assert len(real) == 797
        np.testing.assert_array_equal(bits, real)
        assert np.mean(np.asarray(real == labels[test])) > 0.6
        assert params["w1"].nbytes == 32 * bc.pack_weights(params["w1"]).nbytes


LAYERS = [
    # N, H, C, O, kernel, stride: ResNet-18 and ResNet-50
    (32, 56, 64, 64, 3, 1),
    (256, 28, 128, 128, 3, 1),
    (32, 28, 128, 256, 3, 2),
    (32, 14, 256, 256, 3, 1),
    (32, 7, 512, 512, 3, 1),
    (32, 28, 512, 128, 1, 1),
    (1, 7, 512, 2048, 1, 1),
]


class TestLowering:
    @pytest.mark.parametrize(
        "layer",
        [LAYERS[1], *(pytest.param(v, marks=pytest.mark.slow) for v in LAYERS if v != LAYERS[1])],
    )
    def test_gpu(self, layer):
        n, h, c, o, k, stride = layer
        words = common.cdiv(c, 32)
        xp, wp = (jax.ShapeDtypeStruct(s, jnp.uint32) for s in ((n, h, h, words), (k, k, o, words)))
        per_output = jax.ShapeDtypeStruct((o,), jnp.float32)
        out = common.cdiv(h, stride)
        residual = jax.ShapeDtypeStruct((n, out, out, o), jnp.bfloat16)
        options = {"channels": c, "strides": stride, "implementation": "pallas_gpu"}
        text = aot.lower_for_gpu(functools.partial(bc.binary_conv2d, **options), xp, wp)
        assert "mosaic_gpu" in text
        text = aot.lower_for_gpu(
            functools.partial(bc.binary_conv2d_block, **options),
            xp, wp, per_output, per_output, residual, per_output, per_output,
        )  # fmt: skip
        assert "mosaic_gpu" in text

    def test_tpu(self):
        xp, wp = (jax.ShapeDtypeStruct(s, jnp.uint32) for s in ((4, 14, 14, 8), (3, 3, 256, 8)))
        call = functools.partial(bc.binary_conv2d, channels=256, implementation="pallas_tpu")
        with common.assume_device("TPU v5 lite"):
            text = jax.jit(call).trace(xp, wp).lower(lowering_platforms=("tpu",)).as_text()
        assert "tpu_custom_call" in text


class TestBits:
    """The kernel around the 1-bit instruction, which the interpreter replaces by counting; the instruction needs a device."""

    @pytest.mark.parametrize(
        "case",
        [
            (1, 5, 8, 200, 66, (3, 3), 2, "SAME", "zero"),
            pytest.param((2, 4, 5, 33, 5, (3, 3), 1, "SAME", "plus_one"), marks=pytest.mark.slow),
            pytest.param((1, 1, 6, 1600, 8, (1, 1), 1, "VALID", "zero"), marks=pytest.mark.slow),
            pytest.param(
                (1, 4, 4, 96, 130, (5, 2), (1, 2), ((2, 2), (0, 1)), "zero"), marks=pytest.mark.slow
            ),
        ],
    )
    def test_interpreted(self, case):
        x, w, xp, wp, options = arguments(case)
        geometry = geometry_of(xp, wp, options)
        interpret = common.interpret("pallas_gpu_interpret")
        got = gpu.convolve(xp, wp, geometry, interpret=interpret, bits=True)
        np.testing.assert_array_equal(got, integers(x, w, geometry.strides, geometry.pads, geometry.pad_mode))

    @pytest.mark.slow
    def test_interpreted_block(self):
        geometry, given_, options = block_arguments(CASES[0])
        interpret = common.interpret("pallas_gpu_interpret")
        got = gpu.block(*given_[:2], geometry, *given_[2:], interpret=interpret, bits=True)
        expected = block(given_, **options)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))

    def test_lowers_to_the_instruction(self):
        xp, wp = (jax.ShapeDtypeStruct(s, jnp.uint32) for s in ((256, 28, 28, 4), (3, 3, 128, 4)))
        geometry = api.geometry_of(xp, wp, 128, 1, "SAME", "zero")
        text = aot.lower_for_gpu(lambda *a: gpu.convolve(*a, geometry, interpret=False, bits=True), xp, wp)
        assert "wgmma.mma_async.sync.aligned.m64n128k256.s32.b1.b1.and.popc" in text

    def test_not_chosen_without_a_device(self):
        assert not gpu.bits_are_exact()
        with common.assume_device("NVIDIA H200"):
            assert not gpu.bits_are_exact()

    def test_a_failing_device_is_told(self, monkeypatch):
        monkeypatch.setattr(gpu, "convolve", lambda xp, *_, **__: jnp.zeros((), jnp.int32))
        gpu._try_bits.cache_clear()
        with pytest.warns(UserWarning, match="1-bit tensor-core instruction is not used: its sums are wrong"):
            assert not gpu._try_bits()
        gpu._try_bits.cache_clear()


class TestRefusals:
    xp, wp = jnp.zeros((1, 4, 4, 2), jnp.uint32), jnp.zeros((3, 3, 8, 2), jnp.uint32)

    @pytest.mark.parametrize(
        ("message", "change"),
        [
            ("xp: needs packed uint32", {"xp": jnp.zeros((1, 4, 4, 2), jnp.int32)}),
            ("xp: needs packed uint32", {"xp": jnp.zeros((4, 4, 2), jnp.uint32)}),
            ("wp: needs packed uint32", {"wp": jnp.zeros((3, 3, 8, 2), jnp.float32)}),
            ("wp: needs xp's 2 words .*groups", {"wp": jnp.zeros((3, 3, 8, 1), jnp.uint32)}),
            ("channels: needs more than 32 and at most 64", {"channels": 65}),
            ("channels: needs more than 32 and at most 64", {"channels": 32}),
            ("pad_mode: needs one of zero", {"pad_mode": "one"}),
            ("strides: needs", {"strides": 0}),
            ("strides: needs", {"strides": (1, 2, 3)}),
            ("padding: needs", {"padding": "FULL"}),
            ("padding: needs", {"padding": ((0, -1), (0, 0))}),
            (
                "xp, wp: need at least one output",
                {"wp": jnp.zeros((5, 5, 8, 2), jnp.uint32), "padding": "VALID"},
            ),
            ("implementation: needs", {"implementation": "cuda"}),
            ("implementation: 'pallas_gpu' cannot run", {"implementation": "pallas_gpu"}),
            ("implementation: 'pallas_tpu' cannot run", {"implementation": "pallas_tpu"}),
        ],
    )
    def test_convolution(self, message, change):
        call = {"xp": self.xp, "wp": self.wp, "channels": 50} | change
        with pytest.raises(common.KernelError, match=message):
            bc.binary_conv2d(call.pop("xp"), call.pop("wp"), **call)

    @pytest.mark.parametrize(
        ("message", "change"),
        [
            ("scale: needs shape", {"scale": jnp.ones(7)}),
            ("prelu: needs shape", {"prelu": jnp.ones(())}),
            ("residual: needs", {"residual": jnp.ones((1, 4, 4, 7))}),
            ("residual: needs", {"residual": jnp.ones((1, 4, 4, 8), jnp.int32)}),
        ],
    )
    def test_block(self, message, change):
        call = {"scale": jnp.ones(8), "shift": jnp.ones(8)} | change
        with pytest.raises(common.KernelError, match=message):
            bc.binary_conv2d_block(self.xp, self.wp, **call, channels=50)

    def test_too_many_products_for_float_sums(self):
        words = (1 << 24) // 32
        xp, wp = (jax.ShapeDtypeStruct(s, jnp.uint32) for s in ((1, 1, 1, words), (1, 1, 1, words)))
        call = functools.partial(bc.binary_conv2d, channels=1 << 24)
        for device in ("NVIDIA H200", "TPU v4"):
            with common.assume_device(device), pytest.raises(common.KernelError, match="2\\^24"):
                jax.eval_shape(call, xp, wp)
        assert jax.eval_shape(call, xp, wp).shape == (1, 1, 1, 1)  # a CPU counts in integers
        for kernel in (gpu, tpu):
            assert "2^24" in kernel.obstacle(api.geometry_of(xp, wp, 1 << 24, 1, "SAME", "zero"))

    def test_zero_padding_of_many_taps_on_gpu(self):
        xp, wp = jnp.zeros((1, 9, 9, 1), jnp.uint32), jnp.zeros((7, 7, 8, 1), jnp.uint32)
        with pytest.raises(common.KernelError, match="at most 30 taps"):
            bc.binary_conv2d(xp, wp, channels=32, implementation="pallas_gpu_interpret")

    def test_packing(self):
        with pytest.raises(common.KernelError, match="word: needs"):
            bc.pack_bits(jnp.ones(3), word=jnp.int32)
        with pytest.raises(common.KernelError, match="x: needs real"):
            bc.pack_bits(jnp.ones(3, jnp.complex64))
        with pytest.raises(common.KernelError, match="axis: needs"):
            bc.pack_bits(jnp.ones(3), axis=1)
        with pytest.raises(common.KernelError, match="n: needs"):
            bc.unpack_bits(jnp.zeros(1, jnp.uint32), 33)
        with pytest.raises(common.KernelError, match="packed: needs"):
            bc.unpack_bits(jnp.zeros(1, jnp.int32), 3)
        with pytest.raises(common.KernelError, match="dtype: needs"):
            bc.unpack_bits(jnp.zeros(1, jnp.uint32), 3, dtype=jnp.uint8)
        with pytest.raises(common.KernelError, match="w: needs"):
            bc.pack_weights(jnp.ones(3))
        with pytest.raises(common.KernelError, match="k: needs"):
            bc.popcount_dot(jnp.zeros(1, jnp.uint32), jnp.zeros(1, jnp.uint32), 33)
        with pytest.raises(common.KernelError, match="a, b: need"):
            bc.popcount_dot(jnp.zeros(1, jnp.uint32), jnp.zeros(1, jnp.uint8), 8)
        with pytest.raises(common.KernelError, match="packed, w: need"):
            bc.no_shift_dot(jnp.zeros((1, 2), jnp.uint8), jnp.zeros((17, 1), jnp.int8))
        with pytest.raises(common.KernelError, match="xp, wp: need"):
            bc.binary_dense(jnp.zeros((1, 1), jnp.uint32), jnp.zeros((1, 1, 1), jnp.uint32), 32)
        with pytest.raises(common.KernelError, match="scale, shift: need"):
            bc.sign_thresholds(jnp.ones(2), jnp.ones(3))

    def test_training(self):
        x, w, alpha = jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 8, 2)), jnp.ones(2)
        for message, call in [
            ("ste: needs one of clip", lambda: bc.binary_conv2d_ste(x, w, alpha, "tanh")),
            ("x, w: need .*ungrouped", lambda: bc.binary_conv2d_ste(x, jnp.ones((3, 3, 1, 8)), alpha)),
            ("alpha: needs shape", lambda: bc.binary_conv2d_ste(x, w, jnp.ones(3))),
            ("x: needs floats", lambda: bc.binary_conv2d_ste(x.astype(jnp.int32), w, alpha)),
            ("pad_mode: needs", lambda: bc.binary_conv2d_ste(x, w, alpha, pad_mode="reflect")),
        ]:
            with pytest.raises(common.KernelError, match=message):
                call()


def test_words_hold_32_channels():
    assert packing.WORD_BITS == 32
