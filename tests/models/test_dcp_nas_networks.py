"""Cells: genotypes, mixtures, Parent and Child from one definition, networks of a genotype and their packed form."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import models
from jaxface.errors import UserError
from jaxface.layers import BinaryConv, OneBitConv
from jaxface.losses import ggn_vector_product
from jaxface.models import cells
from jaxface.models.binary import network_cost
from jaxface.models.cells import DARTS, RELEASED, SMALL, Genotype, MixedOp, Style, SuperNet

FEW = ("skip_connect", "conv_1x1", "none")


def test_check_10_discretizing_takes_two_nodes_and_never_none():
    rng = np.random.default_rng(0)
    for operations in (SMALL, DARTS):
        alpha = rng.normal(size=(14, len(operations)))
        alpha[:, operations.index("none")] += 5  # the best of every edge
        genes = cells.discretize(alpha, operations)
        assert len(genes) == 8 and "none" not in dict(genes)
        for node in range(4):
            (_, first), (_, second) = genes[2 * node : 2 * node + 2]
            assert first != second and max(first, second) < node + 2
        shifted = alpha + rng.normal(size=(14, 1))
        assert cells.discretize(shifted, operations) == genes


def test_the_released_cell_is_a_value():
    again = cells.genotype_from_json(RELEASED.to_json(), DARTS)
    assert again == RELEASED and hash(again) == hash(RELEASED) and {again: 1}[RELEASED] == 1
    assert RELEASED.nodes == 4 and cells.check_genotype(RELEASED, DARTS) == RELEASED
    assert RELEASED.normal[2:4] == (("dil_conv_3x3", 2), ("skip_connect", 0))
    drawn = [cells.random_genotype(seed, SMALL, 3) for seed in range(4)]
    assert len(set(drawn)) == 4 and drawn[0] == cells.random_genotype(0, SMALL, 3)
    for genotype in drawn:
        cells.check_genotype(genotype, SMALL)


def changed(kind="normal", at=0, gene=None):
    value = json.loads(RELEASED.to_json())
    value[kind][at] = gene
    return json.dumps(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv", "genotype: needs a JSON object, got other text"),
        ("[" * 100_000, "genotype: needs a JSON object, got other text"),
        ('{"normal": []}', "genotype: needs a JSON object with normal and reduce"),
        (
            changed(gene=["conv_7x7", 0]),
            "genotype: normal node 2 needs an operation among .*, got 'conv_7x7'",
        ),
        (
            changed(gene=["conv_3x3", 0]),
            "genotype: normal node 2 needs an operation among .*, got 'conv_3x3'",
        ),
        (changed(gene=["none", 0]), "genotype: normal node 2 needs an operation among .*, got 'none'"),
        (changed("reduce", 3, ["skip_connect", 4]), "genotype: reduce node 3 needs a node before it, got 4"),
        (
            changed("reduce", 3, ["skip_connect", -1]),
            "genotype: reduce node 3 needs a node before it, got -1",
        ),
        (changed(gene=["skip_connect", 0]), "genotype: normal node 2 needs two nodes, got 0 twice"),
        (changed(gene=["skip_connect", True]), r"genotype: normal needs a list of \[operation, node\]"),
        (changed(gene="skip_connect"), r"genotype: normal needs a list of \[operation, node\]"),
    ],
)
def test_check_12_a_bad_genotype_is_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        cells.genotype_from_json(text, DARTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SuperNet(10, primitives=("skip_connect", "conv_1x1")), "primitives: needs 'none'"),
        (lambda: SuperNet(10, primitives=("none",)), "primitives: needs 'none', no operation, beside others"),
        (lambda: SuperNet(10, primitives=("none", "conv_9x9")), "primitives: .* got 'conv_9x9'"),
        (lambda: SuperNet(10, primitives=("none", "none")), "primitives: needs every operation once"),
        (lambda: SuperNet(10, cells=2, reductions=(2,)), "reductions: needs cells from 0 to 1"),
        (lambda: cells.discretize(np.zeros((4, 3)), FEW), r"alpha: needs \[E, M\] with M = 3 .*got \(4, 3\)"),
        (lambda: cells.discretize(np.zeros((5, 2)), FEW[:2]), "primitives: needs 'none' among them"),
        (lambda: cells.discretize(np.full((5, 3), np.nan), FEW), "alpha: needs finite values"),
        (lambda: models.create("dcp_nas_pico", genotype="{}"), "genotype: needs a JSON object with"),
    ],
)
def test_check_12_what_cannot_be_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_an_architecture_of_another_shape_is_refused():
    net = SuperNet(3, 2, 1, (), 1, FEW)
    with pytest.raises(UserError, match=r"alpha: needs \[4, 3\], a row for each edge of both kinds"):
        net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 4)))


@pytest.mark.parametrize("form", ["real", pytest.param("binary", marks=pytest.mark.slow)])
def test_check_11_a_certain_mixture_is_its_operation(form):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    style = Style(form, affine=False)
    mixed = MixedOp(4, 1, style, SMALL)
    one = {name: jax.nn.softmax(30.0 * jax.nn.one_hot(i, len(SMALL))) for i, name in enumerate(SMALL)}
    variables = mixed.init(jax.random.key(1), x, one["none"], train=False)
    run = jax.jit(functools.partial(mixed.apply, train=False))
    for name, weights in one.items():
        wanted = jnp.zeros_like(x)
        if name != "none":
            inner = {kind: tree[name] for kind, tree in variables.items() if name in tree}
            wanted = cells.OPERATIONS[name](4, 1, style).apply(inner, x, train=False)
        np.testing.assert_allclose(run(variables, x, weights), wanted, atol=1e-4)


def test_a_binary_layer_is_the_one_of_the_other_binary_networks():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))
    ours, theirs = OneBitConv(4, 3, form="binary"), BinaryConv(4, (3, 3), scale="learned")
    variables = ours.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(1), x))

    def loss(layer, variables, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x)))

    for ours_, theirs_ in zip(
        *(
            jax.tree.leaves(jax.grad(functools.partial(loss, layer), (0, 1))(variables, x))
            for layer in (ours, theirs)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(ours_, theirs_, atol=1e-5)
    real = OneBitConv(4, 3, form="signs").apply({"params": {"kernel": variables["params"]["kernel"]}}, x)
    np.testing.assert_allclose(real, BinaryConv(4, (3, 3), real_weights=True).apply(variables, x), atol=1e-5)


def test_parent_and_child_are_one_definition():
    image = jnp.zeros((1, 8, 8, 1))
    shapes = {}
    for form in ("real", "binary"):
        net = SuperNet(3, 2, 1, (0,), 2, DARTS, form)
        variables = jax.eval_shape(net.init, jax.random.key(0), image, jnp.zeros(net.alpha_shape))
        shapes[form] = {
            jax.tree_util.keystr(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        }
    extra = shapes["binary"].items() - shapes["real"].items()
    assert shapes["real"].items() <= shapes["binary"].items()
    assert extra and all(path.endswith("['scale']") for path, _ in extra)
    # Normalizations of a search have no scale and no bias of their own, those of the stem excepted.
    assert not any("norm" in path for path in shapes["real"] if "cell" in path)


@pytest.mark.slow
def test_fresh_variables_are_those_of_init():
    net, shape = SuperNet(3, 8, 1, (0,), 1, ("sep_conv_3x3", "skip_connect", "none"), "binary"), (8, 8, 2)
    drawn = net.fresh(jax.random.key(0), shape)
    wanted = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(net.alpha_shape))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, wanted)
    separable = drawn["params"]["cell0"]["outer"]["mixed"]["sep_conv_3x3"]["first"]
    assert separable["binary"]["kernel"].std() == pytest.approx(
        (2 / 16) ** 0.5, rel=0.15
    )  # [2, 1, 1, 16, 16]
    assert separable["depthwise"]["kernel"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.15)
    means = jnp.abs(separable["binary"]["kernel"]).mean((1, 2, 3))
    np.testing.assert_allclose(separable["binary"]["scale"], means, rtol=1e-6)
    assert (separable["prelu"]["slope"] == 0.25).all() and (
        drawn["params"]["stem"]["norm"]["scale"] == 1
    ).all()
    other = net.fresh(jax.random.key(1), shape)["params"]["head_dense"]["kernel"]
    assert not jnp.allclose(drawn["params"]["head_dense"]["kernel"], other)


def parameters_of(genotype, channels, cell_count, reductions, classes):
    """The count by hand: kernels, one β for each filter, two numbers of a normalization, a slope of a PReLU."""

    def pointwise(inputs, outputs):  # BN, 1x1, BN, PReLU; the factorized reduction too
        return 2 * inputs + inputs * outputs + outputs + 2 * outputs + outputs

    def separable(side, c):
        return 2 * c + (side**2 * c + c) + 2 * c + c + (c * c + c) + 2 * c + c

    def operation(name, stride, c):
        if "pool" in name:
            return 2 * c
        if name == "skip_connect":
            return pointwise(c, c) if stride == 2 else 0
        side = int(name[-1])
        return separable(side, c) * (2 if name.startswith("sep") else 1)

    total = 27 * channels // 2 + channels + 9 * channels // 2 * channels + 2 * channels
    total += 9 * channels**2 + 2 * channels
    before = last = channels
    c = channels
    for index in range(cell_count):
        reduction = index in reductions
        c *= 2 if reduction else 1
        total += pointwise(before, c) + pointwise(last, c)
        for name, source in genotype[reduction]:
            total += operation(name, 2 if reduction and source < 2 else 1, c)
        before, last = last, 4 * c
    return total + last * classes + classes


@pytest.mark.slow
def test_the_released_network_has_the_published_shape():
    net = models.create("dcp_nas_large", embedding=1000)
    assert (net.channels, net.cells, net.reductions) == (108, 10, (3, 6))
    planes = {}

    def watch(call, arguments, options, context):
        output = call(*arguments, **options)
        if type(context.module).__name__ == "Cell":
            planes[context.module.name] = output.shape[1:]
        return output

    def run(image):
        with nn.intercept_methods(watch):
            return net.init_with_output(jax.random.key(0), image)

    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    output, variables = jax.eval_shape(run, image)
    assert output.shape == (1, 1000)
    assert planes["cell0"] == (28, 28, 432) and planes["cell3"] == (14, 14, 864)
    assert planes["cell9"] == (7, 7, 1728)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == parameters_of(RELEASED, 108, 10, (3, 6), 1000) == 14_505_886
    assert models.from_description(json.loads(json.dumps(models.describe(net)))) == net


def test_what_is_binary_is_counted_so():
    cost = network_cost(
        models.create("dcp_nas_large", embedding=10, channels=32, cells=1, reductions=()), (64, 64, 3)
    )
    layers = {layer.name.removeprefix("cell0/"): layer for layer in cost.layers}
    pointwise = layers["node2_0/first/binary"]
    assert pointwise.binary and pointwise.weight_bits == 32 * 32
    depthwise = layers["node2_0/first/depthwise"]
    assert not depthwise.binary and depthwise.weights == 25 * 32 == depthwise.weight_bits
    assert depthwise.operations == depthwise.multiply_accumulates  # real inputs
    before = layers["input0/even"]
    assert not before.binary and before.weight_bits == before.weights == 16 * 16 * 2
    assert layers["stem/conv0"].weight_bits == 32 * 27 * 16


ALL = Genotype(
    normal=(("sep_conv_3x3", 0), ("conv_3x3", 1), ("skip_connect", 0), ("dil_conv_5x5", 2)),
    reduce=(("dil_conv_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 0), ("conv_1x1", 2)),
)


@functools.cache
def found(scale):
    net = models.create("dcp_nas_pico", embedding=3, genotype=ALL.to_json(), channels=4, scale=scale)
    image = jax.random.uniform(jax.random.key(2), (2, 8, 8, 1), minval=-1)
    return net, image, net.init(jax.random.key(3), image)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["learned", "released"])
def test_packed_bits_say_what_the_training_form_says(scale):
    net, image, variables = found(scale)
    packed, stored = cells.to_packed_cells(net, variables)
    wanted = net.apply(variables, image)
    np.testing.assert_allclose(packed.apply(stored, image), wanted, rtol=1e-5, atol=1e-6)
    bits = [leaf for leaf in jax.tree.leaves(stored) if leaf.dtype == jnp.uint32]
    paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(stored["params"])]
    assert len(bits) == sum(path[-1].key == "bits" for path in paths) == 9 + 7
    assert not any(path[-1].key == "kernel" for path in paths if path[0].key.startswith("cell"))
    with pytest.raises(UserError, match="form: needs a network of binary weights to pack, got 'packed'"):
        cells.to_packed_cells(packed, stored)


@pytest.mark.slow
def test_a_weight_of_zero_cannot_be_packed():
    net, _, variables = found("released")
    zeros = jax.tree.map(jnp.zeros_like, variables)
    with pytest.raises(UserError, match="kernel: needs latent weights other than 0 to pack"):
        cells.to_packed_cells(net, zeros)


@functools.cache
def supernet_programs():
    """Gradients of a supernet's loss by its weights, with and without rematerialization: compiled, and their inputs."""
    image, alpha = jax.random.normal(jax.random.key(0), (8, 8, 8, 2)), None
    programs = {}
    for remat in ("none", "block"):
        net = SuperNet(3, 4, 1, (), 1, SMALL, "binary", remat=remat)
        alpha = 0.3 * jax.random.normal(jax.random.key(1), net.alpha_shape)
        variables = net.init(jax.random.key(2), image, alpha)

        def loss(params, net=net, variables=variables, alpha=alpha):
            logits, _ = net.apply(
                {**variables, "params": params}, image, alpha, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(logits**2)

        programs[remat] = jax.jit(jax.grad(loss)).lower(variables["params"]).compile(), variables["params"]
    return programs


@pytest.mark.slow
def test_rematerialized_branches_have_the_same_gradients_in_less_memory():
    (plain, params), (again, _) = (supernet_programs()[remat] for remat in ("none", "block"))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain(params), again(params)
    )
    whole, less = (p.memory_analysis().temp_size_in_bytes for p in (plain, again))
    assert less < 0.6 * whole


@pytest.mark.slow
def test_the_product_through_a_binary_supernet_is_that_of_its_jacobian():
    net = SuperNet(3, 2, 1, (0,), 1, ("dil_conv_3x3", "max_pool_3x3", "skip_connect", "none"), "binary")
    image = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
    alpha = 0.3 * jax.random.normal(jax.random.key(1), net.alpha_shape)
    variables = net.init(jax.random.key(2), image, alpha)

    def logits(alpha):
        return net.apply(variables, image, alpha, train=True, mutable=["batch_stats"])[0]

    vector = jax.random.normal(jax.random.key(3), alpha.shape)
    jacobian = jax.jit(jax.jacfwd(logits))(alpha).reshape(4, 3, -1)
    p = jax.nn.softmax(logits(alpha))
    middle = jnp.stack([jnp.diag(row) - jnp.outer(row, row) for row in p])
    wanted = jnp.einsum("bni,bnm,bmj,j->i", jacobian, middle, jacobian, vector.ravel()) / 4
    product = jax.jit(functools.partial(ggn_vector_product, logits))(alpha, vector)
    np.testing.assert_allclose(product.ravel(), wanted, rtol=1e-3, atol=1e-6)
    assert jnp.abs(product).max() > 1e-3
