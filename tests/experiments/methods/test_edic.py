"""EDIC as an experiment: the paper's recipe against the source's numbers, a run that learns, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_codec
import small_configs

from experiments.methods.edic import LAPTOP, Config, build, network
from experiments.recipes.video import PredictionSpec
from experiments.studies.edic import STUDIES
from jaxface import data, inference, training
from jaxface.errors import UserError
from jaxface.models.compression import CodecSpec, decoder_macs

SMALL = small_configs.of("edic", "CONFIG")


def test_the_papers_recipe():
    """Source: N = 128, M = 192 to λ = 2048, 192 and 320 above; Adam 1e-4 to 2.2 of 2.5 million steps of 4 patches; clamp 5."""
    config = Config.paper()
    assert (config.codec.channels, config.codec.latents, config.codec.multiple) == (128, 192, 64)
    assert (config.codec.components, config.codec.enhancer_width, config.codec.enhancer_blocks) == (3, 64, 3)
    assert (config.weight, config.ladder, config.ladder_steps) == (2048, (1024, 512, 256), 500_000)
    assert (config.image_size, config.batch_size, config.steps, config.clamp) == (256, 4, 2_500_000, 5)
    rates = config.optimizer.learning_rates(config.steps)
    np.testing.assert_allclose([rates(0), rates(2_199_999), rates(2_200_001)], [1e-4, 1e-4, 1e-5], rtol=1e-5)
    np.testing.assert_allclose(config.ladder_optimizer.learning_rates(500_000)(499_999), 1e-5, rtol=1e-6)
    assert config.data.root == "flickr" and config.vertical_flip and config.augment.flip == 0.5


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "edic"
    config = dataclasses.replace(SMALL, ladder=(), steps=40, files=4, optimizer=training.adam(5e-3))
    stages = build(config)
    return config, stages, training.run(stages, seed=0, workdir=workdir), workdir


@pytest.mark.slow
def test_a_run_lowers_its_loss_and_reports_rate_and_distortion(outcome):
    _, (stage,), last, _ = outcome
    report = last.metrics
    np.testing.assert_allclose(
        report["codec/loss"], 512 * report["codec/mse"] + report["codec/bpp"], rtol=1e-5
    )
    assert 0 < report["codec/bpp_z"] < report["codec/bpp"]
    assert report["file/excess"] > 0 and report["file/psnr"] == pytest.approx(report["codec/psnr"], abs=3)
    fresh = last.state.replace(params={"codec": small_codec.params_of(SMALL.codec)})
    assert report["codec/loss"] < stage.evaluate(fresh)["codec/loss"]


@pytest.mark.slow
def test_a_run_is_opened_as_a_codec_that_another_run_starts_from(outcome):
    config, _, last, workdir = outcome
    assert inference.codec_weights(workdir) == [512.0]
    codec = inference.open_codec(workdir)
    assert codec.spec == config.codec and codec.weight == 512
    leaf = codec.params["g_s"]["deconv1"]["kernel"]
    np.testing.assert_array_equal(leaf, last.state.params["codec"]["g_s"]["deconv1"]["kernel"])
    image = data.dead_leaves(1, side=24, seed=0)[0]["image"][:, :19]
    assert codec.decode(codec.encode(image).data).shape == image.shape
    (stage, *_) = build(dataclasses.replace(config, init_from=str(workdir)))
    started = stage.init(jax.random.key(1), None).params["codec"]["g_s"]["deconv1"]["kernel"]
    np.testing.assert_array_equal(started, leaf)


@pytest.mark.slow
def test_a_ladder_goes_on_from_one_weight_to_the_next(tmp_path):
    stages = build(SMALL)
    assert [stage.name for stage in stages] == ["rate_512", "rate_256"]
    last = training.run(stages, seed=0, workdir=tmp_path / "run")
    assert inference.codec_weights(tmp_path / "run") == [512.0, 256.0] and last.name == "rate_256"
    kernels = [
        inference.open_codec(tmp_path / "run", weight=weight).params["g_s"]["deconv1"]["kernel"]
        for weight in (512.0, 256.0)
    ]
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 0.01  # two steps away


def test_arms_start_alike_and_the_control_costs_as_much():
    arms = STUDIES["leaves"].arms
    base = STUDIES["leaves"].base
    configs = {name: dataclasses.replace(base, **changes) for name, changes in arms.items()}
    method, control = configs["mixture + enhancement"], configs["mixture + as many MACs"]
    ratio = decoder_macs(network(control).spec) / decoder_macs(network(method).spec)
    assert 1 <= ratio < 1.02 and not network(control).spec.enhance
    assert len({build(dataclasses.replace(SMALL, ladder=()))[0].key, "edic"}) == 1
    assert {config.weight for config in configs.values()} == {512.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 12}, "image_size: needs a multiple of 8, the stride of this network, got 12"),
        ({"distortion": "ms_ssim"}, "image_size: MS-SSIM needs at least 161 pixels, got 8"),
        ({"equal_macs": True}, "equal_macs: needs a codec with an enhancer"),
        ({"ladder": (512.0,)}, "ladder: needs weights that differ"),
        (
            {"data": data.Digits()},
            r"data: needs color images with sides of multiples of 8, digits has \(8, 8, 1\)",
        ),
        ({"init_from": "nowhere"}, "run: nowhere holds no run of a codec"),
        (
            {"ladder": (), "prediction": PredictionSpec(network=small_codec.VIDEO, steps=2)},
            "data: needs clips, such as moving_leaves; dead leaves 8 has single images",
        ),
        (
            {"prediction": PredictionSpec(network=small_codec.VIDEO, steps=2)},
            r"ladder: needs no prediction\.steps",
        ),
        ({"batch_size": 9}, "batch_size: needs at most the 8 records"),
    ],
)
def test_bad_configurations_are_refused_before_anything_compiles(changes, words):
    with pytest.raises(UserError, match=words):
        build(dataclasses.replace(SMALL, **changes))


def test_a_codec_of_another_network_is_no_start(tmp_path):
    file = tmp_path / "codec.safetensors"
    inference.save_codec(file, small_codec.codec())
    with pytest.raises(UserError, match="init_from: needs a codec of the same network"):
        build(dataclasses.replace(SMALL, codec=LAPTOP, init_from=str(file)))
    (stage, *_) = build(dataclasses.replace(SMALL, codec=small_codec.SMALL, init_from=str(file)))
    started = stage.init(jax.random.key(0), None).params["codec"]["g_s"]["deconv1"]["kernel"]
    np.testing.assert_array_equal(started, small_codec.codec().params["g_s"]["deconv1"]["kernel"])


def test_recognizers_refuse_images_without_classes():
    from experiments.methods import sface

    with pytest.raises(
        UserError, match="data: needs people or classes to recognize, dead leaves 8 has images alone"
    ):
        sface.build(dataclasses.replace(sface.Config(), data=SMALL.data, image_size=16))


CLIPS = dataclasses.replace(
    SMALL,
    data=data.MovingLeaves(clips=8, held_out_clips=4, leaves=8, movers=1),
    image_size=16,
    ladder=(),
    prediction=PredictionSpec(network=small_codec.VIDEO, steps=4),
)


@pytest.mark.slow
def test_a_video_codec_behind_that_of_its_first_frames(tmp_path):
    last = training.run(build(CLIPS), seed=0, workdir=tmp_path / "run")
    report = {name.removeprefix("video_512/video/"): value for name, value in last.metrics.items()}
    assert last.name == "video_512" and 0 < report["bpp_motion"] < report["bpp"]
    np.testing.assert_array_equal(
        last.state.extra["codec"]["g_a"]["conv1"]["kernel"],
        inference.open_codec(tmp_path / "run").params["g_a"]["conv1"]["kernel"],
    )
    assert int(last.state.extra["taken"]) == 4
    codec = inference.open_video_codec(tmp_path / "run")
    frames = list(data.load(CLIPS.data, image_size=16).held_out[0]["frames"])
    decoded = list(codec.decode(codec.encode(frames)))
    assert [frame.shape for frame in decoded] == [(16, 16, 3)] * 3


def test_clips_are_of_sizes_that_the_network_takes():
    with pytest.raises(UserError, match="data: needs frames with sides of multiples of 16, got 24x24"):
        build(dataclasses.replace(CLIPS, image_size=24))
    arms = STUDIES["clips"].arms
    assert arms["DVC"]["prediction"].network.residual.entropy == "laplace"
    assert arms["DVC with EDIC"]["prediction"].network.enhance


@pytest.mark.slow
def test_every_switch_trains():
    specs = [
        dataclasses.replace(LAPTOP, channels=4, latents=4, entropy=entropy, attention=2.0, enhancer_width=2)
        for entropy in ("laplace", "scale", "mean_scale", "autoregressive")  # the run above has a mixture
    ]
    for spec in specs:
        (stage,) = build(dataclasses.replace(SMALL, codec=spec, ladder=()))
        state = stage.init(jax.random.key(0), None)
        batch = {"image": jnp.asarray(next(stage.batches(state))["image"], jnp.float32) / 127.5 - 1}
        step = jax.jit(stage.step)
        losses = []
        for _ in range(5):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < losses[0], spec.entropy
    assert CodecSpec() == Config.paper().codec
