"""DVC: published parameter counts, and what its switches do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_codec

from jaxface.errors import UserError
from jaxface.models.compression import CodecSpec
from jaxface.models.compression.video import DVC, VideoSpec, video_from_description

FRAME = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)


def shapes(spec):
    return jax.eval_shape(lambda key, x: DVC(spec).init(key, x, x), jax.random.key(0), FRAME)["params"]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_parameters_are_as_many_as_in_the_port():
    params = shapes(VideoSpec())
    assert size(params["flow"]) == 960_200
    assert size(params["motion_encoder"]) == 1_035_520 and size(params["motion_decoder"]) == 1_035_394
    assert size(params["compensation"]) == 448_387
    assert size(params["motion_prior"]) == 128 * 11
    assert size(params) == 4_754_064


def test_switches_leave_out_what_they_name():
    plain = shapes(VideoSpec(prediction="previous"))
    assert plain.keys() == {"residual"}
    assert "compensation" not in shapes(VideoSpec(compensate=False))
    better = VideoSpec(
        residual=CodecSpec(channels=64, latents=96, attention=2.0, enhance=False), enhance=True
    )
    params = shapes(better)
    assert "enhancer" in params and "attention1" in params["residual"]["g_a"]
    assert "enhancer" not in params["residual"]


@pytest.mark.slow
def test_a_frame_through_the_codec():
    spec = VideoSpec(
        residual=CodecSpec(
            channels=4, latents=4, attention=None, enhance=False, halvings=2, hyper_halvings=1
        ),
        levels=2,
        flow_widths=(4, 2),
        motion_channels=4,
        compensation_width=4,
    )
    frames = np.random.default_rng(0).random((2, 2, 16, 32, 3)).astype(np.float32)
    network = DVC(spec)
    image = jax.ShapeDtypeStruct(frames.shape[1:], jnp.float32)
    shapes = jax.eval_shape(lambda key, x: network.init(key, x, x), jax.random.key(0), image)
    params = small_codec.filled(shapes)
    told = jax.jit(network.apply)(params, frames[0], frames[1])
    assert told["x_rec"].shape == (2, 16, 32, 3) and told["bits_m"].shape == (2,)
    assert all((told[name] > 0).all() for name in ("bits_m", "bits_y", "bits_z"))
    assert jnp.isfinite(told["x_rec"]).all()
    with pytest.raises(ValueError, match="reference: needs the frame's shape"):
        jax.eval_shape(network.apply, params, frames[0], frames[1, :, :8])


def test_a_video_codec_is_described_and_refused():
    spec = VideoSpec(prediction="previous")
    assert video_from_description(dataclasses.asdict(spec)) == spec
    for changes in ({"prediction": "future"}, {"flow_widths": (3,)}, {"levels": 0}):
        with pytest.raises(UserError):
            dataclasses.replace(spec, **changes)
    for described in (
        {},
        {**dataclasses.asdict(spec), "levels": "4"},
        {**dataclasses.asdict(spec), "flow_widths": 3},
    ):
        with pytest.raises(UserError, match="network: "):
            video_from_description(described)
