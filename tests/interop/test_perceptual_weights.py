"""Random files of the published names and shapes: VGG-16, AlexNet, LPIPS, DISTS, and a support vector regression as text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxface import interop, metrics
from jaxface.errors import UserError
from jaxface.metrics.image import perceptual

VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
RNG = np.random.default_rng(0)


def numbers(*shape, low=-0.1, high=0.1):
    return RNG.uniform(low, high, shape).astype(np.float32)


def vgg_state(narrower=1):
    """A VGG-16 under torchvision's names, its classifier (made small) included."""
    widths = [c // narrower for c in (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)]
    state = {}
    for number, inputs, outputs in zip(VGG, [3, *widths], widths, strict=False):
        draw = (
            np.resize(numbers(1009), (outputs, inputs, 3, 3))
            if narrower == 1
            else numbers(outputs, inputs, 3, 3)
        )
        state |= {f"features.{number}.weight": draw, f"features.{number}.bias": numbers(outputs)}
    return state | {"classifier.0.weight": numbers(4, 4), "classifier.0.bias": numbers(4)}


def linear_state(narrower=1, widths=(64, 128, 256, 512, 512)):
    return {f"lin{i}.model.1.weight": numbers(1, c // narrower, 1, 1, low=0) for i, c in enumerate(widths)}


def dists_state(narrower=1):
    channels = 3 + sum(c // narrower for c in (64, 128, 256, 512, 512))
    return {name: numbers(1, channels, 1, 1, low=0) for name in ("alpha", "beta")}


@pytest.fixture
def save(tmp_path):
    def file(name, state):
        path = tmp_path / f"{name}.safetensors"
        safetensors.numpy.save_file(state, path)
        return path

    return file


def convolve(x, kernel, bias):
    """relu of a 3x3 correlation in PyTorch's layout, [C, H, W] in float64."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    cut = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.maximum(np.einsum("chwij,ocij->ohw", cut, kernel, optimize=True) + bias[:, None, None], 0)


def oracle_levels(state, x, smooth):
    maps = []
    for number in VGG:
        if number in (5, 10, 17, 24):
            if smooth:
                window = np.outer([1, 2, 1], [1, 2, 1]) / 16
                padded = np.pad(x**2, ((0, 0), (1, 1), (1, 1)))
                cut = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
                x = np.sqrt((cut * window).sum((-2, -1)) + 1e-12)
            else:
                x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max((2, 4))
        x = convolve(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"])
        if number in (2, 7, 14, 21, 28):
            maps.append(x)
    return maps


def oracle_lpips(state, linear, a, b):
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    levels = [oracle_levels(state, ((2 * x - 1 - shift) / scale).transpose(2, 0, 1), False) for x in (a, b)]
    total = 0.0
    for i, (f, g) in enumerate(zip(*levels, strict=True)):
        f, g = (m / (np.linalg.norm(m, axis=0) + 1e-10) for m in (f, g))
        total += np.mean(np.einsum("chw,c->hw", (f - g) ** 2, linear[f"lin{i}.model.1.weight"].reshape(-1)))
    return total


def oracle_dists(state, weights, a, b):
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    maps = [
        [x.transpose(2, 0, 1), *oracle_levels(state, ((x - mean) / std).transpose(2, 0, 1), True)]
        for x in (a, b)
    ]
    alpha, beta = (weights[k].reshape(-1).astype(np.float64) for k in ("alpha", "beta"))
    likeness = [[], []]
    for f, g in zip(*maps, strict=True):
        f, g = f.reshape(len(f), -1), g.reshape(len(g), -1)
        mf, mg = f.mean(1), g.mean(1)
        covariance = (f * g).mean(1) - mf * mg
        likeness[0].append((2 * mf * mg + 1e-6) / (mf**2 + mg**2 + 1e-6))
        likeness[1].append((2 * covariance + 1e-6) / (f.var(1) + g.var(1) + 1e-6))
    luminance, structure = map(np.concatenate, likeness)
    return 1 - (alpha @ luminance + beta @ structure) / (alpha.sum() + beta.sum())


def test_distances_are_those_of_the_formulas(save):
    """A VGG-16 of a sixteenth of the channels, read from files, against sums in float64."""
    state, linear, dists = vgg_state(16), linear_state(16), dists_state(16)
    for values in state.values():
        values *= 5  # so that deep maps are no numerical zero
    trunk = save("vgg", state)
    a, b = (RNG.random((16, 16, 3)) for _ in range(2))
    images = tuple(jnp.asarray(x, jnp.float32) for x in (a, b))
    lpips = interop.read_lpips(trunk, save("lin", linear), narrower=16)
    assert float(jax.jit(metrics.lpips)(*images, lpips)) == pytest.approx(
        oracle_lpips(state, linear, a, b), rel=1e-4
    )
    weights = interop.read_dists(trunk, save("dists", dists), narrower=16)
    assert float(jax.jit(metrics.dists)(*images, weights)) == pytest.approx(
        oracle_dists(state, dists, a, b), abs=1e-5
    )


def test_files_of_the_published_shapes(save):
    trunk = save(
        "vgg", {f"module.{name}": array for name, array in vgg_state().items()}
    )  # as DataParallel saves it
    lpips = interop.read_lpips(trunk, save("lin", linear_state()))
    dists = interop.read_dists(trunk, save("dists", dists_state()))
    assert sum(kernel.size + bias.size for kernel, bias in lpips.convolutions) == 14_714_688
    assert [len(w) for w in lpips.linear] == [64, 128, 256, 512, 512]
    assert dists.alpha.shape == dists.beta.shape == (1475,)


def test_alexnet(save):
    widths, inputs, sides = (64, 192, 384, 256, 256), (3, 64, 192, 384, 256), (11, 5, 3, 3, 3)
    state = {}
    for number, i, o, side in zip((0, 3, 6, 8, 10), inputs, widths, sides, strict=True):
        state |= {
            f"features.{number}.weight": numbers(o, i, side, side),
            f"features.{number}.bias": numbers(o),
        }
    weights = interop.read_lpips(
        save("alex", state), save("lin", linear_state(widths=widths)), trunk="alexnet"
    )
    assert [kernel.shape for kernel, _ in weights.convolutions] == [
        (11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)
    ]  # fmt: skip
    maps = jax.eval_shape(perceptual._alexnet_levels, weights.convolutions, jnp.zeros((1, 64, 64, 3)))
    assert [m.shape[1:3] for m in maps] == [(15, 15), (7, 7), (3, 3), (3, 3), (3, 3)]  # as torchvision's


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("features.5.bias"), r"features.5.bias is nothing, and \(8,\) in the network"),
        (lambda s: s.update({"features.0.weight": numbers(4, 3, 5, 5)}), r"0.weight is \(4, 3, 5, 5\), and \(4, 3, 3, 3\)"),
        (lambda s: s.update({"features.30.weight": numbers(1)}), r"features.30.weight is \(1,\), and nothing in the network"),
        (lambda s: s["features.0.weight"].fill(np.nan), "features.0.weight needs finite numbers"),
    ],
)  # fmt: skip
def test_another_trunk_is_refused(save, change, words):
    state = vgg_state(16)
    change(state)
    with pytest.raises(UserError, match=words) as refused:
        interop.read_lpips(save("vgg", state), save("lin", linear_state(16)), narrower=16)
    assert "\n" not in str(refused.value)


def test_other_weights_of_channels_are_refused(save):
    trunk, linear, dists = save("vgg", vgg_state(16)), linear_state(16), dists_state(16)
    linear["lin1.model.1.weight"][0, 0] = -0.5
    with pytest.raises(UserError, match=r"lin1.model.1.weight needs weights of at least 0, got -0.5"):
        interop.read_lpips(trunk, save("lin", linear), narrower=16)
    del linear["lin1.model.1.weight"]
    with pytest.raises(UserError, match=r"lin1.model.1.weight is nothing, and \(1, 8, 1, 1\)"):
        interop.read_lpips(trunk, save("lin", linear), narrower=16)
    with pytest.raises(UserError, match=r"alpha is \(1, 4, 1, 1\), and \(1, 95, 1, 1\)"):
        interop.read_dists(trunk, save("dists", dists | {"alpha": numbers(1, 4, 1, 1)}), narrower=16)
    with pytest.raises(UserError, match="trunk: needs vgg16 or alexnet, got 'vgg19'"):
        interop.trunk_convolutions({}, "vgg19")


# A support vector regression.

HEAD = "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 2\nrho -153.591\nSV\n"
RANGES = "x\n-1 1\n1 0.2 10\n2 0 4\n3 -1 1\n"


def test_a_support_vector_regression(tmp_path):
    (tmp_path / "allmodel").write_text(HEAD + "1.5 1:0.5 3:-1\n-2 2:0.25\n")
    (tmp_path / "allrange").write_text(RANGES)
    model = interop.read_svr(tmp_path / "allmodel", tmp_path / "allrange", features=3)
    features = np.array([5.0, 1.0, 0.5])
    scaled = 2 * (features - [0.2, 0, -1]) / np.array([9.8, 4, 2]) - 1
    distances = [((scaled - [0.5, 0, -1]) ** 2).sum(), ((scaled - [0, 0.25, 0]) ** 2).sum()]
    expected = 1.5 * np.exp(-0.05 * distances[0]) - 2 * np.exp(-0.05 * distances[1]) + 153.591
    score = jax.jit(metrics.kernel_scores)(model, jnp.asarray(features, jnp.float32))
    assert float(score) == pytest.approx(expected, abs=1e-4)
    (tmp_path / "linear").write_text(
        HEAD.replace("rbf\ngamma 0.05", "linear") + "1.5 1:0.5 3:-1\n-2 2:0.25\n"
    )
    linear = interop.read_svr(tmp_path / "linear", features=3)
    assert float(metrics.linear_scores(linear, jnp.asarray([0.5, 0.5, 0.5]))) == pytest.approx(
        1.5 * (0.25 - 0.5) - 2 * 0.125 + 153.591, abs=1e-4
    )


@pytest.mark.parametrize(
    ("model", "ranges", "words"),
    [
        ("no model\n", RANGES, "weights: needs a support vector regression of libsvm, .* is none"),
        (HEAD.replace("epsilon_svr", "c_svc") + "1 1:1\n1 1:2\n", RANGES, "weights: needs a support vector regression"),
        (HEAD.replace("rbf", "polynomial") + "1 1:1\n1 1:2\n", RANGES, "weights: needs a kernel rbf or linear, .* 'polynomial'"),
        (HEAD + "1 1:1\n", RANGES, "weights: .* is damaged: it has no rho, or other vectors than it says"),
        (HEAD + "1 1:1\n1 4:2\n", RANGES, "weights: needs words such as 3:-0.5 with up to 3 features"),
        (HEAD + "1 1:1\none 1:2\n", RANGES, "weights: .* is damaged: a coefficient or a vector is no finite number"),
        (HEAD.replace("0.05", "0") + "1 1:1\n1 1:2\n", RANGES, "weights: needs a gamma above 0"),
        (HEAD + "1 1:1\n1 1:2\n", "y\n", "ranges: needs lines x and -1 1 first"),
        (HEAD + "1 1:1\n1 1:2\n", RANGES.replace("3 -1 1\n", ""), "ranges: needs a least and a larger value of feature 3"),
        (HEAD + "1 1:1\n1 1:2\n", None, "ranges: cannot read .*allrange"),
    ],
)  # fmt: skip
def test_damaged_regressions_are_refused(tmp_path, model, ranges, words):
    (tmp_path / "allmodel").write_text(model)
    if ranges is not None:
        (tmp_path / "allrange").write_text(ranges)
    with pytest.raises(UserError, match=words) as refused:
        interop.read_svr(tmp_path / "allmodel", tmp_path / "allrange", features=3)
    assert "\n" not in str(refused.value)
