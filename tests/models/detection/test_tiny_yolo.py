import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxface import hardware, losses, models
from jaxface.errors import UserError
from jaxface.models.detection import create_detector, describe, from_description, init_variables
from jaxface.models.detection.tiny_yolo import TinyYolo, TinyYoloNet, fuse_tiny_yolo

SMALL = {
    "widths": (4, 6, 6),
    "pools": (2, 2),
    "ccp_layers": (2, 3),
    "anchor_sizes": ((12.0, 10.0), (30.0, 24.0)),
}
# Weights of the layers' convolutions and the head of one class.
WEIGHTS = (432, 4_608, 18_432, 73_728, 294_912, 1_179_648, 4_718_592, 9_437_184, 30_720)


@functools.cache
def shapes(groups, pooled=tuple(range(2, 9))):
    """Of the variables, and of what each layer stores of an image of 416 x 416."""
    network = TinyYoloNet(ccp_layers=pooled, ccp_groups=groups)
    image = jax.ShapeDtypeStruct((1, 416, 416, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), image)
    output, stored = jax.eval_shape(
        lambda v, x: network.apply(
            v,
            x,
            mutable=["intermediates"],
            capture_intermediates=lambda m, _: (m.name or "")[:5] == "layer",
        ),
        variables,
        image,
    )
    return variables["params"], output, stored["intermediates"]


def weights(params):
    kernels = [params[f"layer{i}"]["kernel"] for i in range(1, 9)] + [params["head"]["kernel"]]
    return [int(np.prod(kernel.shape)) for kernel in kernels]


def test_weights_as_published():
    params, output, _ = shapes(1)
    assert tuple(weights(params)) == WEIGHTS and sum(WEIGHTS) == 15_758_256
    assert output.shape == (1, 13, 13, 5, 6)
    assert create_detector("tiny_yolo").stride == 32
    condensed = weights(shapes(2)[0])
    assert sum(WEIGHTS[1:8]) == 15_727_104 and sum(condensed[1:8]) == 31_454_208
    assert condensed[0] == 432 and condensed[8] == 30_720


@pytest.mark.parametrize("groups", [1, 2])
def test_the_maps_that_are_stored(groups):
    """As many with two filters per map as with one, after the maximum over 2 x 2 pixels."""
    stored = shapes(groups)[2]
    sizes = [int(np.prod(stored[f"layer{i}"]["__call__"][0].shape)) for i in range(1, 9)]
    assert sizes == [692_224, 346_112, 173_056, 86_528, 43_264, 86_528, 173_056, 173_056]


def test_layers_for_the_accelerator():
    """What the layers say of themselves is the table of the host layers, pooled channels and pixels included."""
    table = hardware.tiny_yolo_layers(416, pooled_layers=range(2, 9), channel_pool=2)[:8]
    network = TinyYoloNet(ccp_groups=2).bind({})
    ours = [
        spec
        for i, known in enumerate(table, start=1)
        for spec in getattr(network, f"layer{i}").conv_specs(
            (1, known.height, known.width, known.in_channels)
        )
    ]
    for of_layers in (hardware.layer_cycles(ours).macs, hardware.feature_traffic(ours).layers):
        of_table = hardware.layer_cycles(table).macs, hardware.feature_traffic(table).layers
        assert any(np.array_equal(of_layers, known) for known in of_table)


def test_multiply_accumulates():
    """3.464 billion in layers 1 to 8 at 416 x 416, and the head's."""
    total = models.multiply_accumulates(TinyYoloNet(ccp_groups=1), (416, 416, 3))
    assert (total - 13 * 13 * 30_720) / 1e9 == pytest.approx(3.464, abs=5e-4)


@pytest.fixture(scope="module", params=[False, True], ids=["float", "quantized"])
def trained(request):
    detector = create_detector("tiny_yolo", **SMALL, quantized=request.param)
    params, extra = init_variables(detector, jax.random.key(0), (24, 32))
    rng = np.random.default_rng(1)
    extra = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), jnp.float32), extra
    )
    return detector, {"params": params, **extra}


def test_the_fused_network_is_the_trained_one(trained):
    detector, variables = trained
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 24, 32, 3)), jnp.float32)
    outputs = jax.jit(lambda v, x: detector.module.apply(v, x, train=False))(variables, image)
    fused = jax.jit(lambda f, x: f(x))(fuse_tiny_yolo(detector.module, variables), image)
    assert outputs.shape == (2, 6, 8, 2, 6)
    if detector.quantized:  # rounding moves what is at a threshold to the next level
        assert np.mean(np.abs(fused - outputs) > 1e-3) < 0.05
    else:
        np.testing.assert_allclose(fused, outputs, rtol=1e-4, atol=1e-4)


def batch_of(boxes, size=(32, 32)):
    count = len(boxes)
    return {
        "image": jnp.zeros((1, *size, 3)),
        "boxes": jnp.asarray(boxes, jnp.float32)[None],
        "box_mask": jnp.ones((1, count), bool),
        "box_label": jnp.zeros((1, count), jnp.int32),
        "box_crowd": jnp.zeros((1, count), bool),
        "landmarks": jnp.zeros((1, count, 5, 2)),
        "landmark_mask": jnp.zeros((1, count), bool),
        "image_size": jnp.array([size]),
    }


def test_what_costs_nothing_is_detected():
    """Gradient descent on the outputs themselves ends at boxes that are the objects."""
    detector = create_detector("tiny_yolo", **SMALL)
    batch = batch_of([[4.0, 6, 15, 17], [10, 14, 31, 30]])
    outputs = jnp.zeros((1, 8, 8, 2, 6))

    @jax.jit
    def descend(outputs):
        step = jax.grad(lambda o: detector.loss(o, batch)[0])
        return jax.lax.fori_loop(0, 400, lambda _, o: o - 0.45 * step(o), outputs)

    outputs = descend(outputs)
    assert jax.jit(detector.loss)(outputs, batch)[1]["overlap"] > 0.99
    detect = functools.partial(detector.detect, image_size=(32, 32), score_threshold=0.3, max_outputs=5)
    detected = jax.jit(detect)(outputs)
    assert detected.valid[0].sum() == 2 and detected.landmarks is None
    best = detected.boxes[0][:2]
    np.testing.assert_allclose(best[jnp.argsort(best[:, 0])], batch["boxes"][0], atol=0.3)


def test_anchors_are_where_outputs_of_zero_are():
    """But for the place in the cell: half of it."""
    detector = create_detector("tiny_yolo", **SMALL)
    anchors = detector.anchors((24, 32))
    assert anchors.shape == (6 * 8 * 2, 4)
    np.testing.assert_allclose(anchors[0], [2 - 6, 2 - 5, 2 + 6, 2 + 5])
    decoded = losses.decode_yolo(jnp.zeros((1, 6, 8, 2, 6)), detector.anchor_sizes, detector.stride)
    np.testing.assert_allclose(decoded.boxes.reshape(-1, 4), anchors, atol=1e-4)


def test_description():
    detector = create_detector("tiny_yolo", **SMALL)
    assert from_description(describe(detector)) == detector


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"anchor_sizes": ()}, "anchor_sizes: needs pairs"),
        ({"anchor_sizes": ((1.0, 2.0, 3.0),)}, "anchor_sizes: needs pairs"),
        ({"anchor_sizes": ((1.0, 0.0),)}, "anchor_sizes: needs pairs .height, width. above 0"),
        ({"widths": (4,), "ccp_layers": ()}, "pools: needs at most one for each of 1 layers, got 6"),
        ({"ccp_layers": (9,)}, "ccp_layers: needs layers from 1 to 8, got 9"),
        ({"ccp_groups": 0}, "ccp_groups: needs an integer from 1 to 127, got 0"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UserError, match=message):
        create_detector("tiny_yolo", **fields)


def test_the_class_is_the_registered_one():
    assert isinstance(create_detector("tiny_yolo"), TinyYolo)
