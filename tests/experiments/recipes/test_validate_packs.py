"""`--validate-packs`: verification packs, evaluated on whenever a recognition run is evaluated."""

import dataclasses
import json
import logging
from collections.abc import Sequence

import numpy as np
import pytest
import small_configs

from experiments import configs, launch, methods
from experiments.recipes.recognition import Recipe
from jaxface import data, metrics, training
from jaxface.errors import UserError

SMALL = dict(
    data=data.RenderedFaces(identities=8, per_identity=4, held_out_identities=6, held_out_per_identity=4),
    image_size=16,
    batch_size=16,
    steps=2,
)


CHANGES = {
    "cloak": {"people": 2, "photos": 2, "tests": 2},
    "gabn": {"cells": 2, "data": dataclasses.replace(SMALL["data"], identities=80, held_out_identities=80)},
    "lrfr": {"sizes": (4, 6, 8), "probe_sizes": (4, 16)},
}


def packed(evaluate) -> list[training.PackVerification]:
    """Every evaluation of packs in an evaluation."""
    if isinstance(evaluate, training.PackVerification):
        return [evaluate]
    return [found for part in getattr(evaluate, "parts", ()) for found in packed(part)]


RECIPES = [m for m in methods.descriptions() if issubclass(configs.method_module(m).Config, Recipe)]


REFUSALS = {m: words for m in RECIPES if (words := small_configs.of(m, "REFUSES_PACKS"))}


@pytest.mark.parametrize("method", REFUSALS)
def test_those_that_tell_no_pairs_refuse_packs(method, packs):
    config = dataclasses.replace(configs.method_module(method).Config(), validate_packs=str(packs))
    with pytest.raises(UserError, match=rf"^validate_packs: .* {REFUSALS[method]}$"):
        next(iter(configs.build(method, config)))


@pytest.mark.parametrize("method", [method for method in RECIPES if method not in REFUSALS])
def test_every_recipe_takes_packs(method, packs, monkeypatch):
    """The last network of a run has them; where stages depend on those before, they are opened before any runs."""
    made = []

    class Recorded(training.PackVerification):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(training, "PackVerification", Recorded)
    changes = SMALL | CHANGES.get(method, {})
    config = dataclasses.replace(configs.method_module(method).Config(), **changes, validate_packs=str(packs))
    stages = configs.build(method, config)
    assert made and all(list(evaluation.packs) == ["first", "second"] for evaluation in made)
    assert all(pack.image_shape == (16, 16, 3) for pack in made[0].packs.values())
    if isinstance(stages, Sequence):
        assert [found for stage in stages for found in packed(stage.evaluate)] == made


def test_packs_at_the_cadence_and_in_the_results(tiny, packs, tmp_path):
    flags = ["sface", *tiny, "--workdir", str(tmp_path / "run"), "--validate-packs", str(packs)]
    launch.main([*flags, "--cadence.evaluate-every", "2"])
    rows = [r for r in training.read_records(tmp_path / "run/metrics.jsonl") if r["kind"] == "evaluate"]
    assert [row["step"] for row in rows] == [2, 4, 5]
    names = {f"packs/{pack}/{key}" for pack in ("first", "second") for key in ("accuracy", "auc", "tar@1e-1")}
    assert all(names <= row.keys() for row in rows)
    results = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
    backbone, extra = training.backbone_checkpoint(tmp_path / "run")
    model = configs.method_module("sface").network(configs.parse("sface", tiny[:-1])[0])
    for name in ("first", "second"):
        pack = data.PackSource(packs / f"{name}.bin", image_size=16)
        rows = np.asarray(metrics.normalize(training.embed_source(model, backbone, extra, pack)))
        cosines = (rows[0::2] * rows[1::2]).sum(axis=1)
        genuine, impostor = cosines[pack.pairs.same], cosines[~pack.pairs.same]
        wins = (genuine[:, None] > impostor).mean() + (genuine[:, None] == impostor).mean() / 2
        assert results[f"packs/{name}/auc"] == pytest.approx(wins, abs=1e-6)


def test_one_line_before_any_step(tiny, packs, tmp_path, refusal):
    def refused(method, *flags):
        return refusal(launch.main, [method, *flags, "--workdir", tmp_path / "run"])

    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no pack")
    said = refused("sface", *tiny, "--validate-packs", empty)
    assert said == f"validate_packs: needs a folder with .bin packs; {empty} has none"
    (empty / "lfw.bin").write_bytes(b"no pack")
    assert f"validate_packs: needs a .bin pack; got {empty / 'lfw.bin'}, which" in refused(
        "sface", *tiny, "--validate-packs", empty
    )
    said = refused("sface", *tiny, "--validate-packs", tmp_path / "nowhere")
    assert said.endswith("nowhere: No such file or directory")
    said = refused("sface", "--preset", "digits", "--validate-packs", packs)
    assert said == "validate_packs: needs a network of square color images, got 8x8 of 1 channels"
    scenes = data.Scenes(scenes=2, held_out_scenes=2, people=1, held_out_people=1, per_person=1)
    with pytest.raises(UserError, match=r"^validate_packs: needs a network that .* train a detector$"):
        configs.build(
            "ddc", configs.method_module("ddc").Config(data=scenes, image_size=32, validate_packs=str(packs))
        )
    with pytest.raises(
        UserError, match=r"^validate_packs: needs a network that the run trains on photographs"
    ):
        acw = configs.method_module("acw").Config(validate_packs=str(packs))
        configs.build("acw", acw)
    assert not (tmp_path / "run").exists()


def test_damaged_pairs_are_left_out_and_counted_once(packs, tmp_path, caplog):
    images, same = data.read_bin(packs / "first.bin")
    data.write_bin(tmp_path / "damaged.bin", [b"rubbish", *images[1:]], same)
    (tmp_path / "folder.txt").write_text("of no concern")
    with caplog.at_level(logging.WARNING, logger="jaxface.data"):
        found = data.open_packs(tmp_path, image_size=16)
    assert list(found) == ["damaged"] and len(found["damaged"]) == len(images) - 2
    assert len(caplog.records) == 1 and "left out 1 of the" in caplog.text
