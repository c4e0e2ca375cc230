import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import configs, launch
from experiments.methods import acw
from experiments.recipes import recognition as recipe
from experiments.recipes.heads import HeadSpec
from experiments.recipes.teachers import TeacherSpec
from jaxface import data, losses, metrics, training
from jaxface.data.transforms.corruption import RGBD_CORRUPTIONS
from jaxface.errors import UserError

TINY = dataclasses.replace(
    acw.Config.digits(),
    **{
        name: TeacherSpec(
            backbone="mlp_16",
            embedding=8,
            head=HeadSpec(loss="cosface", scale=16.0, margin=0.2),
            steps=60,
        )
        for name in ("rgb", "depth")
    },
    data=data.DigitHalves(paired=40),
    batch_size=16,
    steps=6,
    fusion_batch_size=16,
    hidden=8,
)
FACES = dict(
    data=data.RenderedFaces(4, 3, 3, 3, modality="rgbd", first_identity=20),
    rgb_data=data.RenderedFaces(4, 3, 3, 3),
    depth_data=data.RenderedFaces(4, 3, 3, 3, modality="depth", first_identity=10),
)


def changed(config=TINY, **fields):
    return dataclasses.replace(config, **fields)


def run(stages, seed=0, **options):
    """Outcomes by stage."""
    outcomes = {}

    def watched():
        for stage in stages:
            outcome = yield stage
            outcomes[stage.name] = outcome

    options.setdefault("parallel", training.make_parallel(devices=jax.devices()[:1]))
    training.run(watched(), seed=seed, **options)
    return outcomes


@pytest.fixture(scope="module")
def built():
    """(split of the pairs, stages of both networks, both networks): what every configuration below has in common."""
    split = data.load(TINY.data, image_size=TINY.image_size, seed=TINY.data_seed)
    return split, *acw.pretraining(TINY, split)


@pytest.fixture(scope="module")
def fusion_of(built):
    """`fusion_of(config)`: the third stage of a configuration, and its pairs, as `build` makes them."""
    split, _, networks = built

    def fusion_of(config):
        pairs = training.RgbdPairs(
            networks, split.train, config.prototypes, config.leave_one_out, config.equalize
        )
        return acw.fusion_stage(config, acw.Fusion(config, pairs), split), pairs

    return fusion_of


@pytest.fixture(scope="module")
def trained(built, fusion_of):
    """Outcomes of the tiny run on one device."""
    return run([*built[1], fusion_of(TINY)[0]])


@pytest.fixture
def previous(trained):
    """The state that the third stage starts from, with both networks; a copy, for a run gives its buffers away."""
    return jax.tree.map(jnp.copy, trained["depth"].state)


def test_three_stages_and_what_they_report(trained):
    assert list(trained) == ["rgb", "depth", "fusion"]
    report = trained["fusion"].metrics
    for prefix in ("", "rgb/", "depth/", "sum/", "max/"):
        subsets = [report[f"{prefix}rank1@{kind}"] for kind in TINY.kinds]
        assert report[f"{prefix}rank1"] == pytest.approx(np.mean(subsets))
    # What is missing is as if it had never been: the other modality alone decides.
    assert report["rank1@no_rgb"] == report["depth/rank1@none"] == report["depth/rank1@rgb"]
    assert report["rank1@no_depth"] == report["rgb/rank1@none"] == report["rgb/rank1@depth"]
    assert all(0 < report[f"confidence@{kind}"] < 1 for kind in TINY.kinds)
    assert report["rgb/rank1@none"] > 0.3 and report["rgb/rank1@rgb"] < report["rgb/rank1@none"]


def test_each_network_learns_from_data_of_its_own_and_neither_changes_later(built, trained):
    first, second = built[1]
    pixels = [
        {row.tobytes() for _ in range(20) for row in next(batches)["image"]}
        for batches in (first.batches(None), second.batches(None))
    ]
    halves = [
        {split.train[i]["image"].tobytes() for i in range(450)}
        for split in (data.load(spec, image_size=8) for spec in (TINY.rgb_data, TINY.depth_data))
    ]
    assert pixels[0] <= halves[0] and pixels[1] <= halves[1]
    rgb, depth, last = (trained[name].state for name in ("rgb", "depth", "fusion"))
    for name, state in (("rgb", rgb), ("depth", depth)):
        jax.tree.map(np.testing.assert_array_equal, last.extra[name]["params"], state.params["backbone"])
        np.testing.assert_array_equal(last.extra[name]["prototypes"], state.params["prototypes"])
    assert set(last.params) == {"confidence"}
    assert (last.params["confidence"]["confidence"]["kernel"] != 0).any()
    jax.tree.map(np.testing.assert_array_equal, depth.extra["rgb"]["params"], rgb.params["backbone"])


def test_the_first_loss_is_that_of_the_library(fusion_of, previous):
    fusion, _ = fusion_of(TINY)
    state = fusion.init(jax.random.key(7), previous)
    batch = next(fusion.batches(state))
    image = (batch["image"].astype(np.float32) - 127.5) / 127.5
    _, reported = jax.jit(fusion.step)(state, {**batch, "image": image})
    # By hand: the same corruption, both networks, their class weights, confidences of one half.
    assert TINY.kinds == RGBD_CORRUPTIONS[:4]
    right = (batch["depth"].astype(np.float32) - 127.5) / 127.5

    @jax.jit
    def corrupted(state):
        keys = jax.vmap(jax.random.split)(training.example_keys(state, 16))
        kinds = jax.vmap(lambda k: jax.random.randint(k, (), 0, 4))(keys[:, 0])
        return data.corrupt_rgbd(keys[:, 1], image, right, kinds, strength=TINY.corruption)

    pairs = corrupted(state)
    unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    scores = []
    for name, pixels in zip(("rgb", "depth"), pairs, strict=True):
        frozen = state.extra[name]
        embeddings = recipe.network(TINY, backbone="mlp_16", embedding=8).apply(
            {"params": frozen["params"]}, pixels
        )
        scores.append(jnp.asarray(unit(embeddings) @ unit(frozen["prototypes"][:10]).T))
    expected = losses.acw_loss(jnp.zeros((16, 2)), *scores, batch["label"], scale=16.0).mean()
    np.testing.assert_allclose(reported["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(reported["confidence_rgb"], 0.5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["acw", "concat"])
def test_eight_devices_equal_one(fusion_of, previous, fusion):
    stage, _ = fusion_of(changed(fusion=fusion))
    before = training.Stage("depth", init=lambda rng, _: jax.tree.map(jnp.copy, previous), compile_init=False)
    states = [
        run([before, stage], parallel=training.make_parallel(mode, devices=jax.devices()[:count]))
        for mode, count in (("jit", 1), ("jit", 8), ("pmap", 8))
    ]
    one, *others = (jax.device_get(outcomes["fusion"].state.params) for outcomes in states)
    for params in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-4, atol=5e-5), params, one)
    rates = [outcomes["fusion"].metrics for outcomes in states]
    for other in rates[1:]:
        assert other == pytest.approx(rates[0], abs=0.005)


@pytest.mark.parametrize(
    "fusion", ["sum", *(pytest.param(f, marks=pytest.mark.slow) for f in ("max", "rgb"))]
)
def test_fusions_that_learn_nothing(fusion_of, previous, fusion):
    stage, _ = fusion_of(changed(fusion=fusion))
    assert stage.step is None and stage.batches is None and stage.steps == 0
    state = stage.init(jax.random.key(0), previous)
    assert state.params == {}
    report = stage.evaluate(state)
    assert report["rank1"] == report[f"{fusion}/rank1"]


def test_the_fixed_weight_is_the_best_on_training_data(fusion_of, previous):
    stage, pairs = fusion_of(changed(fusion="fixed"))
    state = stage.init(jax.random.key(0), previous)
    seen = pairs.networks.describe_source(state.extra, pairs.source, None, seed=1)
    labels = np.asarray(pairs.source.labels)
    classes = state.extra["classes"]
    rgb, depth = seen.rgb @ np.asarray(classes.rgb).T, seen.depth @ np.asarray(classes.depth).T
    rate = lambda w: ((w * rgb + (1 - w) * depth).argmax(axis=1) == labels).mean()  # noqa: E731
    rates = [rate(w) for w in np.linspace(0, 1, 41)]
    assert max(rates) > min(rates) and rate(float(classes.weight)) >= max(rates) - 1e-9


def test_shares_of_the_prototypes_travel_with_their_images(fusion_of, previous):
    stage, pairs = fusion_of(changed(prototypes="images", leave_one_out=1000, equalize=True))
    state = stage.init(jax.random.key(0), previous)
    clean = pairs.networks.describe_source(state.extra, pairs.source)
    batch = next(stage.batches(state))
    rows = {pairs.source[i]["image"].tobytes(): i for i in range(len(pairs.source))}
    for image, share in zip(batch["image"], batch["share_rgb"], strict=True):
        np.testing.assert_array_equal(share, clean.rgb[rows[image.tobytes()]])
    labels = np.asarray(pairs.source.labels)
    classes = state.extra["classes"]
    sums = np.stack([clean.depth[labels == k].sum(axis=0) for k in range(10)])
    np.testing.assert_allclose(classes.depth, sums, atol=1e-4)
    spread = [metrics.impostor_spread(x, labels) for x in (clean.rgb, clean.depth)]
    np.testing.assert_allclose(classes.spread, spread, rtol=1e-5)
    never = dataclasses.replace(pairs, leave_one_out=0).with_shares(state.extra)
    assert not any(never[i]["share_rgb"].any() for i in range(len(never)))


@pytest.mark.slow
def test_confidences_are_in_order_and_win_over_the_sum_and_the_maximum():
    """What the study of digits holds for five seeds (docs/studies/acw/digits.json), on the first of them."""
    config = dataclasses.replace(acw.Config.digits(), seed=1, data_seed=1)
    report = run(acw.build(config), seed=1)["fusion"].metrics
    bad_left, clean, bad_right = (report[f"confidence@{kind}"] for kind in ("rgb", "none", "depth"))
    assert bad_left + 0.05 < clean < bad_right - 0.05
    assert report["rank1"] > report["sum/rank1"] + 0.02 and report["rank1"] > report["max/rank1"]
    for kind in ("rgb", "depth"):
        assert report[f"rank1@{kind}"] > report[f"sum/rank1@{kind}"]


@pytest.mark.slow
def test_rendered_faces_through_the_launcher(tmp_path):
    flags = []
    for name, first in (("data", 20), ("rgb-data", 0), ("depth-data", 10)):
        flags += f"""--{name}.identities 4 --{name}.per-identity 3 --{name}.held-out-identities 3
            --{name}.held-out-per-identity 3 --{name}.first-identity {first}""".split()
    for name in ("rgb", "depth"):
        flags += f"--{name}.backbone mlp_16 --{name}.embedding 8 --{name}.steps 2".split()
    rest = "--image-size 16 --batch-size 8 --steps 2 --quiet"
    flags += rest.split()
    launch.main(["acw", *flags, "--workdir", str(tmp_path / "run")])
    rows = training.read_records(tmp_path / "run" / "metrics.jsonl")
    assert list(dict.fromkeys(row["stage"] for row in rows)) == ["rgb", "depth", "fusion"]
    last = [row for row in rows if "rank1@occluded" in row.get("metrics", row)]
    assert last


@pytest.mark.slow
def test_finished_networks_and_a_folder_of_pairs(tmp_path):
    """An RGB network of one run and a depth network of another, on files that a user has."""
    text = """--image-size 16 --backbone mlp_16 --embedding 8 --batch-size 8 --steps 2 --quiet --data rendered
        --data.identities 4 --data.per-identity 3 --data.held-out-identities 3 --data.held-out-per-identity 3"""
    for name, more in (("rgb", []), ("depth", ["--data.modality", "depth"])):
        launch.main(["sface", *text.split(), *more, "--workdir", str(tmp_path / name)])
    source = data.RenderedSource(4, 6, 16, seed=5, with_depth=True)
    for i in range(len(source)):
        folder = tmp_path / "pairs" / f"p{source.labels[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source[i]["image"]).save(folder / f"{i}.png")
        z = source[i]["depth"]
        distance = np.where(z != 0, 800 - z, 0).astype(np.uint16)
        Image.fromarray(distance).save(folder / f"{i}_depth.png")
    options = f"""--data rgbd_folder --data.root {tmp_path}/pairs --data.held-out 0.5 --image-size 16 --batch-size 8
        --steps 2 --leave-one-out 9 --rgb.run {tmp_path}/rgb --depth.run {tmp_path}/depth --workdir {tmp_path}/acw --quiet"""
    launch.main(["acw", *options.split()])
    saved = training.restore_params(tmp_path / "acw" / "checkpoints" / "02-fusion")
    for name in ("rgb", "depth"):
        finished, _ = training.backbone_checkpoint(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, saved["extra"][name]["params"], finished)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "digits", "--scale", "0"], "scale: needs a finite number above 0, got 0"),
        (["--preset", "digits", "--hidden", "0"], "hidden: needs an integer from 1, got 0"),
        (
            ["--preset", "digits", "--kinds", "none", "none"],
            "kinds: needs some of none, rgb, depth, both, occluded",
        ),
        (["--preset", "digits", "--kinds", "rain"], "kinds: needs some of"),
        (
            ["--preset", "digits", "--leave-one-out", "-1"],
            "leave_one_out: needs an integer from 0, got -1",
        ),
        (["--preset", "digits", "--no-features", "--no-norms"], "features: the confidence network needs"),
        (["--preset", "digits", "--batch-size", "100000"], "batch_size"),
        (["--preset", "digits", "--rgb.head.scale", "-1"], "scale"),
        (["--data", "rendered"], "data: needs images of modality rgbd, got rendered 512x16 of modality rgb"),
        (["--depth-data.modality", "rgb"], "depth_data: needs images of modality depth"),
        (["--data", "rgbd_folder", "--data.root", "/nowhere"], "root: needs a folder of pairs by person"),
        (["--prototypes", "weights"], "prototypes: class weights need the classes of data, 80, in rgb_data"),
        (["--preset", "digits", "--rgb.run", "/nowhere"], "/nowhere"),
    ],
)
def test_refusals_are_one_line(refusal, flags, words):
    assert words in refusal(launch.main, ["acw", *flags, "--quiet"])


def test_a_person_with_one_image_is_refused_before_training():
    source = data.load(TINY.data, image_size=8, seed=0).train
    labels = np.asarray(source.labels)
    rows = np.concatenate([np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)[:1]])
    few = data.Subset(source, rows)
    with pytest.raises(UserError, match=r"data: a prototype needs an image of everybody .*, 3 has 1 in all"):
        training.RgbdPairs(None, few)
    assert not training.RgbdPairs(None, few, leave_one_out=0).left_out.any()
    assert not training.RgbdPairs(
        None, few, "weights"
    ).left_out.any()  # class weights have nothing to leave out


@pytest.mark.parametrize("preset", ["paper", "digits"])
def test_whole_configurations_survive_being_written(preset):
    config = getattr(acw.Config, preset)()
    acw.check(config)
    assert configs.from_dict(configs.to_dict("acw", config, configs.Run()))[1] == config


def test_the_paper_preset_has_the_numbers_of_the_source():
    """Lock3DFace: 509 people, five subsets. The rest is known of the paper only where the method's page says so."""
    config = acw.Config.paper()
    assert config.data.subsets == ("NU", "FE", "PS", "OC", "TM")
    assert round(config.data.held_out * 509) == 169 and 509 - 169 == 340
    # Recognizers: ArcFace with s = 64, m = 0.5 (arXiv:1801.07698), on 112 pixels; SGD of 0.1, momentum 0.9, decay 5e-4.
    for network in (config.rgb, config.depth):
        assert (network.backbone, network.embedding, config.image_size) == ("iresnet50", 512, 112)
        assert network.head == HeadSpec(loss="arcface", scale=64.0, margin=0.5)
        sgd = network.optimizer
        assert (sgd.name, sgd.learning_rate, sgd.momentum, sgd.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    # Virtual depth: 10,000 people, 10 views of 5 expressions each, 20 epochs in batches of 512.
    people = config.depth_data
    assert (people.identities, people.per_identity) == (10_000, 10 * 5)
    assert config.depth.steps == 20 * (10_000 * 50 // 512) == 19_520
    assert (people.variation.yaw, people.variation.pitch, people.variation.roll) == (60.0, 30.0, 15.0)
    assert config.depth_augment.crop_scale == (0.9, 1.1)
    assert inspect.signature(data.augment_depth).parameters["noise"].default == (1.0, 4.0)  # mm
    # Confidences: AdamW of 3e-3 and 1e-2 at one rate, at most 1000 steps of 256 pairs; nothing else is trained.
    adamw = config.optimizer
    assert (adamw.name, adamw.learning_rate, adamw.weight_decay) == ("adamw", 3e-3, 1e-2)
    assert (adamw.schedule, config.fusion_batch_size, config.steps) == ("constant", 256, 1000)
    assert not (config.leave_one_out < 10 or config.prototypes != "images") and config.equalize


def test_a_set_smaller_than_a_batch_is_the_batch():
    source = data.ArraySource(np.zeros((300, 8, 8, 3), np.uint8), np.arange(300) % 3, list("abc"))
    assert jax.device_count() == 8
    assert recipe.filled_batch_size(source, 256) == 256
    assert recipe.filled_batch_size(source, 1000) == 296  # over eight devices
    assert recipe.filled_batch_size(data.Subset(source, np.arange(5)), 256) == 256  # too few: refused later


@pytest.mark.slow
def test_the_step_of_the_paper_traces():
    """The third stage at full size, on shapes alone."""
    config = acw.Config.paper()
    side = config.image_size
    model = training.Teacher(recipe.network(config, backbone="iresnet50", embedding=512))
    networks = training.RgbdNetworks(
        dataclasses.replace(model, key="rgb"),
        dataclasses.replace(model, key="depth"),
        kinds=config.kinds,
        strength=config.corruption,
    )
    source = data.ArraySource(
        np.zeros((680, side, side, 3), np.uint8), np.arange(680) % 340, list(map(str, range(340)))
    )
    fusion = acw.Fusion(config, training.RgbdPairs(networks, source))

    def loss(key):
        recognizer = training.Recognizer(model.model, 4, (side, side, 3))
        params, extra = recognizer.init(key)
        state = training.create_state(key, params, extra=extra)
        extra = networks.depth.installed(networks.rgb.installed({}, state), state)
        prototypes = jnp.ones((340, 512))
        classes = training.RgbdClasses(prototypes, prototypes, jnp.ones(2), jnp.float32(0.5))
        extra["classes"] = classes
        batch = {"image": jnp.zeros((8, side, side, 3)), "depth": jnp.zeros((8, side, side, 3))}
        shares = {f"share_{name}": jnp.zeros((8, 512)) for name in acw.MODALITIES}
        params = fusion.init(key, classes)
        return fusion.loss(params, extra, {**batch, **shares, "label": jnp.zeros(8, jnp.int32)}, key)[
            0
        ], params

    value, params = jax.eval_shape(loss, jax.random.key(0))
    assert value.shape == () and value.dtype == jnp.float32
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == (512 + 512 + 2 + 1) * 128 + (128 + 1) * 2  # about 131 thousand
