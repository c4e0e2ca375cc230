import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import configs, launch
from experiments.methods import ida
from experiments.recipes.gan import GanSpec
from experiments.studies import ida as studies
from jaxface import data, inference, metrics, models, training
from jaxface.errors import UserError
from jaxface.models.generative.gan import Discriminator, Generator

CROWD = data.Crowd(identities=40, per_identity=4, held_out_identities=30, held_out_per_identity=4, size=16)
SMALL = dataclasses.replace(
    ida.Config.crowded(),
    crowd=CROWD,
    candidates=200,
    neighbors=10,
    estimator=ida.EstimatorSpec(steps=0),
)
GAN = GanSpec(steps=2, batch_size=16, latent=4, channels=2)
FACES = dataclasses.replace(
    ida.Config(),
    data=data.Procedural(identities=12, per_identity=4, held_out_identities=8, groups=3),
    augment=data.Augment(flip=0.0),
    backbone="mlp_8",
    embedding=8,
    batch_size=16,
    steps=2,
    candidates=40,
    neighbors=5,
    score="generated",
    gan=GAN,
    estimator=ida.EstimatorSpec(steps=3, batch_size=32),
    targets="centers",
)
KINDS = ("gallery", "mixed", "gaussian", "simulated", "learned", "oracle")


def one_device():
    return training.make_parallel(devices=jax.devices()[:1])


def run(config, **arguments):
    stages = ida.build(config, **arguments)
    return training.run(stages, seed=config.seed, parallel=one_device(), progress=False)


def units(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def nearest_mean(cosines, allowed, k):
    """Mean of the k largest allowed entries of each row."""
    return -np.sort(-np.where(allowed, cosines, -9), axis=1)[:, :k].mean(1)


@pytest.fixture(scope="module")
def faces():
    """(stages, outcomes by stage) of a run with every stage on vectors that a network embeds."""
    stages, outcomes = ida.build(FACES), {}

    def watched():
        for stage in stages:
            outcomes[stage.name] = yield stage

    training.run(watched(), seed=FACES.seed, progress=False, parallel=one_device())
    return stages, outcomes


@pytest.fixture(scope="module")
def small():
    """The state at the end of a run on a few synthetic embeddings."""
    return run(SMALL).state


@pytest.fixture(scope="module")
def crowds():
    """Metrics by what the people and the candidates are."""
    crowd = data.Crowd(
        identities=200, per_identity=4, held_out_identities=120, held_out_per_identity=4, size=64
    )
    config = dataclasses.replace(SMALL, crowd=crowd, candidates=1000, neighbors=30)
    changes = {
        "crowded": {"estimator": ida.EstimatorSpec(steps=200, batch_size=128)},
        "one group": {"crowd": dataclasses.replace(crowd, groups=1)},
        "other groups": {"crowd": dataclasses.replace(crowd, candidates_crowding=0.0), "score": "simulated"},
    }
    return {name: run(dataclasses.replace(config, **fields)).metrics for name, fields in changes.items()}


def test_the_preset_from_the_launcher(tmp_path):
    flags = """--preset crowded --crowd.identities 40 --crowd.per-identity 4 --crowd.held-out-identities 30
        --crowd.held-out-per-identity 4 --crowd.size 16 --candidates 200 --neighbors 10 --estimator.steps 0 --quiet"""
    launch.main(["ida", *flags.split(), "--workdir", str(tmp_path)])
    report = json.loads((tmp_path / "results.json").read_text())["metrics"]
    for score in ("cosine", *KINDS, "snorm"):
        assert 0 <= report[f"alignment/{score}/tar@1e-2"] <= 1
        assert report[f"alignment/{score}/spread@1e-2"] >= 0
    assert report["alignment/verification/tar@1e-2"] == report["alignment/gallery/tar@1e-2"]
    assert "alignment/generated/tar@1e-2" not in report  # no generator by default
    assert list(tmp_path.glob("**/roc.png"))


@pytest.mark.slow
def test_rendered_people_from_the_launcher_and_the_network_of_the_run(tiny, tmp_path):
    flags = "--estimator.steps 3 --estimator.hidden 4 --candidates 40 --neighbors 6 --workdir"
    launch.main(["ida", *tiny, *flags.split(), str(tmp_path)])
    report = json.loads((tmp_path / "results.json").read_text())["metrics"]
    for score in ("cosine", *KINDS, "snorm"):
        assert report[f"alignment/{score}/spread@1e-2"] >= 0  # rendered people have skin tones
    assert 0 < report["recognition/verification/accuracy"] <= 1
    # The network of the run is that of its last stage, and can be evaluated, taught from and used again.
    _, config, _ = configs.from_dict(training.read_config(tmp_path))
    backbone = inference.open_recognizer(tmp_path).variables["params"]
    again = dataclasses.replace(config, run=str(tmp_path), score="simulated")
    stages = ida.build(again)
    assert [stage.name for stage in stages] == ["recognition", "estimator", "alignment"]
    assert stages[0].steps == 0
    outcome = run(again)
    jax.tree.map(np.testing.assert_array_equal, outcome.state.params["backbone"], backbone)
    for score in ("cosine", "simulated", "oracle"):
        name = f"alignment/{score}/tar@1e-2"
        np.testing.assert_allclose(outcome.metrics[name], report[name], atol=0.03)


def test_the_generator_leaves_the_network_alone(faces):
    """The network of the first stage is in every state that follows, whatever else is trained."""
    _, outcomes = faces
    assert list(outcomes) == ["recognition", "gan", "estimator", "alignment"]
    states = {name: outcome.state for name, outcome in outcomes.items()}
    backbone = states["recognition"].params["backbone"]
    for params in (states["gan"].extra["teacher"]["params"], states["alignment"].params["backbone"]):
        jax.tree.map(np.testing.assert_array_equal, params, backbone)
    generator = states["alignment"].params["generator"]
    jax.tree.map(np.testing.assert_array_equal, generator, states["gan"].ema["generator"])
    report = outcomes["alignment"].metrics
    assert 0 < report["generated/passed"] <= 1
    assert report["verification/tar@1e-2"] == report["generated/tar@1e-2"]


def test_centers_are_the_prototypes_of_the_network(faces):
    """Mean of d* among the 11 other prototypes, in float64 numpy."""
    stages, outcomes = faces
    state = outcomes["gan"].state
    prototypes = units(np.asarray(state.extra["teacher"]["prototypes"], np.float64)[:12])
    split = data.load(FACES.data, image_size=FACES.image_size, seed=0)
    rows = units(training.Teacher(ida.network(FACES)).embed(state.extra, split.train).astype(np.float64))
    others = split.train.labels[:, None] != np.arange(12)
    expected = nearest_mean(rows @ prototypes.T, others, 5).mean()
    started = stages[2].init(jax.random.key(1), state)
    np.testing.assert_allclose(started.params["estimator"]["head_dense"]["bias"], [expected], atol=1e-5)


@pytest.mark.parametrize(("targets", "gallery"), [("images", 100_000), ("centers", 100_000), ("centers", 40)])
def test_an_untrained_estimator_is_the_mean_of_its_targets(targets, gallery):
    """d* in numpy; a gallery of one image each has the same centers, the means of all images."""
    config = dataclasses.replace(SMALL, targets=targets, gallery=gallery)
    bias = ida.build(config)[0].init(jax.random.key(0), None).params["estimator"]["head_dense"]["bias"]
    people = data.crowded_embeddings(40, 4, seed=0, size=16)
    rows, labels = (x[:: 160 // min(gallery, 160)] for x in (people.embeddings, people.labels))
    neighbors, names = rows, labels
    if targets == "centers":
        neighbors, names = units(people.embeddings.reshape(40, 4, 16).mean(1)), np.arange(40)
    expected = nearest_mean(rows @ neighbors.T, labels[:, None] != names, 10).mean()
    np.testing.assert_allclose(bias, [expected], atol=1e-5)


def test_crowds_gain_and_one_group_does_not(crowds):
    crowded, alone = crowds["crowded"], crowds["one group"]
    for kind in ("gallery", "mixed", "simulated", "snorm"):
        gain, none = (
            m[f"alignment/{kind}/tar@1e-3"] - m["alignment/cosine/tar@1e-3"] for m in (crowded, alone)
        )
        assert gain > 0.1 > 0.03 > abs(none), kind
        assert crowded[f"alignment/{kind}/spread@1e-2"] < crowded["alignment/cosine/spread@1e-2"] - 1, kind


def test_the_estimator_learns_the_discrepancy(crowds):
    report = crowds["crowded"]
    assert report["alignment/learned/held_out_correlation"] > 0.7
    assert report["alignment/learned/tar@1e-3"] > report["alignment/cosine/tar@1e-3"] + 0.05


def test_candidates_from_elsewhere_get_little_weight(crowds):
    """They lose nothing to the cosine; labeled candidates count as they are."""
    crowded, other = crowds["crowded"], crowds["other groups"]
    assert crowded["alignment/simulated/weight"] > 0.9 and crowded["alignment/simulated/correlation"] > 0.9
    assert other["alignment/simulated/correlation"] < 0.3
    assert other["alignment/simulated/deviation"] < 0.5 * crowded["alignment/simulated/deviation"]
    assert other["alignment/verification/tar@1e-3"] > other["alignment/cosine/tar@1e-3"] - 0.01
    assert crowded["alignment/gallery/weight"] == crowded["alignment/oracle/weight"] == 1


def test_weight_zero_is_the_cosine():
    report = run(dataclasses.replace(SMALL, weight=0.0)).metrics
    for kind in KINDS:
        assert report[f"alignment/{kind}/tar@1e-2"] == report["alignment/cosine/tar@1e-2"]


@pytest.mark.slow
def test_devices_share_the_batch():
    """One device, a mesh of 8 and 8 replicas train the same estimator; one device and a mesh the same generator."""
    config = dataclasses.replace(SMALL, gan=GAN, estimator=ida.EstimatorSpec(steps=3, batch_size=32))
    states = []
    for parallel in (
        one_device(),
        training.make_parallel("jit", model_shards=2),
        training.make_parallel("pmap"),
    ):
        outcome = training.run(ida.build(config), parallel=parallel, progress=False)
        states.append(jax.tree.map(np.asarray, outcome.state.params))
    one, mesh, replicas = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, mesh)
    # Replicas draw latents of their own.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        one["estimator"],
        replicas["estimator"],
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(replicas))


def test_a_generator_and_a_detector_can_be_plugged_in(small):
    """A generator that copies the gallery is a gallery; a detector drops what it does not take for a face."""
    people = data.crowded_embeddings(40, 4, seed=0, size=16).embeddings.reshape(-1, 1, 16, 1)
    config, asked = dataclasses.replace(SMALL, candidates=320, score="generated"), []

    def copies(latents):
        assert latents.shape[1] == SMALL.gan.latent
        start = 256 * len(asked)
        asked.append(np.asarray(latents))
        return people[np.arange(start, start + len(latents)) % len(people)]

    def candidates(config, generator=copies, detector=None):
        """The embeddings of the generated faces that pass."""
        asked.clear()
        return ida._Neighbors(config, generator, detector).candidates(small)["generated"]

    assert [stage.name for stage in ida.build(config, generator=copies)] == ["estimator", "alignment"]
    rows = people[:, 0, :, 0]
    np.testing.assert_allclose(candidates(config), np.tile(rows, (2, 1)), atol=1e-6)
    assert len(asked) == 2 and (asked[0] != asked[1]).all()
    every_second = candidates(config, detector=lambda faces: np.arange(len(faces)) % 2 == 0)
    np.testing.assert_allclose(every_second, np.tile(rows[::2], (2, 1)), atol=1e-6)
    once = candidates(dataclasses.replace(config, duplicates_above=0.9999))
    np.testing.assert_allclose(once, rows, atol=1e-6)
    with pytest.raises(UserError, match=r"^generator: all of its 320 faces were dropped"):
        candidates(config, detector=lambda faces: np.zeros(len(faces)))
    with pytest.raises(UserError, match=r"^generator: needs faces of shape \(1, 16, 1\), got \(1, 8, 1\)"):
        candidates(config, lambda latents: people[: len(latents), :, :8])


def test_a_face_that_may_be_the_same_person_counts_for_nobody(small):
    neighbors = ida._Neighbors(dataclasses.replace(SMALL, same_above=0.2), None, None)
    rows = data.crowded_embeddings(30, 4, seed=0, first_identity=1 << 20, size=16).embeddings
    support = neighbors.support(small, rows)
    for kind in ("simulated", "mixed", "gaussian"):
        assert np.asarray(support[kind].discrepancy.mean).max() <= 0.2
    assert np.asarray(support["gallery"].discrepancy.mean).max() > 0.2
    nobody = ida._Neighbors(dataclasses.replace(SMALL, same_above=-1.0), None, None)
    with pytest.raises(
        UserError, match=r"^same_above: leaves 120 of 120 images without a mixed neighbor, got -1"
    ):
        nobody.support(small, rows)


def test_a_cap_takes_as_many_as_are_inside():
    neighbors = ida._Neighbors(dataclasses.replace(SMALL, cap=0.5, fewest=3, neighbors=40), None, None)
    rows = data.crowded_embeddings(30, 4, seed=0, first_identity=1 << 20, size=16).embeddings
    virtual = data.crowded_embeddings(200, 1, seed=0, first_identity=3 << 19, size=16).embeddings
    np.testing.assert_array_equal(neighbors.simulated.vectors, virtual)
    count = np.asarray(neighbors.discrepancy(rows, virtual).count)
    np.testing.assert_array_equal(count, np.clip((rows @ virtual.T >= 0.5).sum(1), 3, 40))
    assert len(np.unique(count)) > 5


@pytest.mark.slow
def test_an_estimator_on_a_feature_map(tiny):
    flags = "--score learned --backbone iresnet_pico --estimator.layer stage3_block1 --estimator.steps 2"
    config, _ = configs.parse("ida", [*tiny, *flags.split(), "--estimator.batch-size", "16"])
    outcome = run(dataclasses.replace(config, neighbors=6, candidates=40, steps=1))
    assert outcome.metrics["alignment/learned/deviation"] > 0
    assert "batch_stats" in outcome.state.extra["estimator"]
    with pytest.raises(
        UserError, match=r"^estimator.layer: needs one of .*stage3_block1.*, got 'head_dense'"
    ):
        ida.build(
            dataclasses.replace(config, estimator=dataclasses.replace(config.estimator, layer="head_dense"))
        )


def test_embeddings_of_a_file(tmp_path):
    people, gallery, virtual = (
        data.crowded_embeddings(count, each, seed=0, first_identity=first, size=16)
        for count, each, first in ((30, 4, 1 << 20), (40, 4, 0), (200, 1, 99))
    )
    arrays = dict(embeddings=people.embeddings, labels=people.labels, groups=people.groups)
    arrays |= dict(gallery=gallery.embeddings, gallery_labels=gallery.labels)
    path = tmp_path / "a.npz"
    np.savez(path, virtual=virtual.embeddings, **arrays)
    config = dataclasses.replace(SMALL, crowd=None, embeddings=str(path))
    report = run(config).metrics
    assert {"alignment/simulated/spread@1e-2", "alignment/oracle/tar@1e-2"} <= set(report)
    # Without candidates of its own there are those made of the gallery.
    np.savez(path, **arrays)
    neighbors = ida._Neighbors(config, None, None)
    assert neighbors.simulated is None
    with pytest.raises(UserError, match=r"^score: simulated faces need a renderer, embeddings has none"):
        ida._Neighbors(dataclasses.replace(config, score="simulated"), None, None)


@pytest.mark.slow
def test_templates_of_a_set_in_the_layout_of_ijb(template_set):
    """Twelve templates of six people: scores are those of pooled embeddings, each with its discrepancy, in numpy."""
    config = dataclasses.replace(
        FACES,
        data=data.RenderedFaces(8, 3, 4, 3),
        image_size=16,
        augment=data.Augment(),
        score="gallery",
        gan=GanSpec(steps=0),
        estimator=ida.EstimatorSpec(steps=0),
        templates=str(template_set.root),
    )
    outcome = run(config)
    report, params = outcome.metrics, outcome.state.params
    assert report["alignment/verification/eer"] == report["alignment/gallery/eer"]
    assert "alignment/oracle/eer" not in report  # who is on a template is not said
    assert 0 <= report["recognition/verification/accuracy"] <= 1  # of the people of the data
    source = data.TemplateSource(template_set.root, image_size=16)
    flip = dict(flip=True)
    features = training.embed_source(
        ida.network(config), params["backbone"], outcome.state.extra, source, **flip
    )
    features = features.astype(np.float64) * template_set.scores[:, None]
    pooled = []
    for template in np.unique(template_set.templates):
        media = template_set.media[template_set.templates == template]
        images = features[template_set.templates == template]
        pooled.append(np.sum([images[media == medium].mean(0) for medium in np.unique(media)], axis=0))
    rows = units(np.array(pooled))
    split = data.load(config.data, image_size=16, seed=0)
    gallery = units(
        training.embed_source(
            ida.network(config), params["backbone"], outcome.state.extra, split.train, **flip
        )
    )
    d = np.sort(rows @ gallery.T, axis=1)[:, -5:].mean(1)
    first, second = template_set.pairs.T
    scores = (rows @ rows.T)[first, second] - (d[first] + d[second]) / 2
    expected = metrics.equal_error_rate(scores[template_set.same], scores[~template_set.same]).eer
    np.testing.assert_allclose(report["alignment/gallery/eer"], expected, atol=1e-6)
    with pytest.raises(UserError, match=r"^score: an oracle needs to know who is who"):
        ida.build(dataclasses.replace(config, score="oracle"))


def test_candidates_that_say_little_are_named_in_one_line(caplog):
    config = dataclasses.replace(SMALL, crowd=dataclasses.replace(CROWD, candidates_crowding=0.0))
    with caplog.at_level(logging.WARNING, logger="jaxface.training"):
        run(config)
    (line,) = [r.getMessage() for r in caplog.records if "say little" in r.getMessage()]
    assert "simulated (correlation" in line and "mean pair cosine" in line and "gallery" not in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cap 1.5", "cap: needs a number from -1 to 1, got 1.5"),
        ("--cap 0.5 --fewest 60", "fewest: needs at most the 50 neighbors, got 60"),
        ("--score generated", "score: generated faces need a generator, gan.steps is 0"),
        ("--embeddings nowhere.npz", "embeddings: cannot read nowhere.npz"),
        ("--templates nowhere", "templates: needs one meta/<set>_face_tid_mid.txt, nowhere has 0"),
    ],
)
def test_refusals_of_the_launcher(refusal, tmp_path, flags, message):
    people = "--data.identities 8 --data.per-identity 8"
    said = refusal(launch.main, ["ida", *people.split(), *flags.split(), "--workdir", tmp_path / "run"])
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"neighbors": 0}, "neighbors: needs an integer from 1, got 0"),
        ({"same_above": 2.0}, "same_above: needs a number from -1 to 1, got 2"),
        ({"weight": -1.0}, "weight: needs a finite number from 0, got -1"),
        ({"candidates": 0}, "candidates: needs an integer from 1, got 0"),
        ({"gan": GanSpec(penalty=-1.0)}, "gan.penalty: needs a finite number from 0, got -1"),
        ({"gan": GanSpec(batch_size=12)}, "gan.batch_size: needs a multiple of the 8 devices, got 12"),
        ({"gan": GanSpec(steps=-1)}, "gan.steps: needs an integer from 0, got -1"),
        (
            {"data": data.Procedural(identities=12, per_identity=4, held_out_identities=0)},
            "data: needs people to verify who are not trained on, got ",
        ),
        ({"estimator": ida.EstimatorSpec(steps=-1)}, "estimator.steps: needs an integer from 0, got -1"),
        ({"embeddings": "a.npz", "run": "b"}, "run: needs to be the only source of embeddings"),
        (
            {"embeddings": "a.npz", "templates": "b"},
            "templates: needs a network and an estimator on embeddings",
        ),
        (
            {"embeddings": "a.npz", "estimator": ida.EstimatorSpec(layer="x")},
            "estimator.layer: needs a network, embeddings has none",
        ),
        (
            {"templates": "a", "estimator": ida.EstimatorSpec(layer="x")},
            "templates: needs a network and an estimator on embeddings, got estimator.layer",
        ),
        (
            {"image_size": 20, "backbone": "mlp", "gan": GanSpec()},
            "image_size: the generator needs squares of a multiple of 8, got 20x20",
        ),
    ],
)
def test_refusals(fields, message):
    config = dataclasses.replace(ida.Config(), data=data.RenderedFaces(8, 8))
    with pytest.raises(UserError) as caught:
        configs.build("ida", dataclasses.replace(config, **fields))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_scores_that_cannot_be_had(tmp_path):
    for i in range(16):
        path = tmp_path / f"s{i // 4}" / f"{i % 4}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16), 10 * i, np.uint8)).save(path)
    folder = data.Folder(str(tmp_path), held_out=0.5)
    config = dataclasses.replace(FACES, data=folder, image_size=16, batch_size=8, score="simulated")
    with pytest.raises(UserError, match=r"^score: simulated faces need a renderer, folder"):
        ida.build(config)


def test_the_preset_of_the_paper_against_its_sources():
    """arXiv:1801.07698 (loss, flip, size), and the public ArcFace release (iResNet-100, MS1MV2, 20 epochs, batch, schedule)."""
    paper = ida.Config.paper()
    assert paper.batch_size == 8 * 128 and paper.steps == 20 * 5686  # 5,822,653 images
    rates = paper.optimizer.learning_rates(paper.steps)
    np.testing.assert_allclose([rates(0), rates(56_860), rates(113_720)], [0.1, 0.05, 0.0], atol=1e-6)
    optimizer = paper.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm) == (
        "sgd",
        0.9,
        5e-4,
        5,
    )
    assert (paper.head.loss, paper.head.scale, paper.head.margin) == ("arcface", 64, 0.5)
    assert paper.augment == data.Augment(flip=0.5) and paper.image_size == 112
    assert paper.prototype_std == 0.01 and paper.sample_rate == 1
    assert (
        paper.data.verification is not None and paper.templates is not None
    )  # everybody is trained on; IJB-C
    # Candidates and their filters are ours; the paper's abstract has a generator, and numbers for neither.
    assert paper.score == "generated"
    assert (paper.candidates, paper.neighbors, paper.same_above) == (10_000, 50, 0.6)


@pytest.mark.slow
def test_the_networks_of_the_paper():
    """The published count of iResNet-100, and generator and discriminator at its size."""
    paper = ida.Config.paper()
    variables = jax.eval_shape(
        ida.network(paper).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    )
    assert models.parameter_count(variables) + 512 == 65_156_160  # with the fixed last scale
    shape = (112, 112, 3)
    latents, images = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, paper.gan.latent), (2, *shape)))
    made, _ = jax.eval_shape(
        Generator(shape, paper.gan.channels).init_with_output, jax.random.key(0), latents
    )
    logits, _ = jax.eval_shape(
        Discriminator(shape, paper.gan.channels).init_with_output, jax.random.key(0), images
    )
    assert made.shape == (2, *shape) and logits.shape == (2,)


def test_presets_are_configurations():
    for config in (ida.Config(), ida.Config.paper(), ida.Config.crowded()):
        assert config.score == "gallery" or config == ida.Config.paper()
        method, again, _ = configs.from_dict(
            json.loads(json.dumps(configs.to_dict("ida", config, configs.Run())))
        )
        assert method == "ida" and again == config


def test_studies_change_fields_that_exist():
    for study in studies.STUDIES.values():
        assert study.method in study.arms
        for changes in study.conditions.values():
            for overrides in study.arms.values():
                ida._check(dataclasses.replace(study.base, **changes, **overrides))
