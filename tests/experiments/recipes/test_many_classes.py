"""No full-size preset makes [B, C]: its training steps are traced for as many classes as a large face set has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.methods import cckd, coupleface, gabn, ida, lrfr, rco, sface
from experiments.recipes import recognition as recipe
from experiments.recipes.teachers import teacher_stage
from jaxface import data
from jaxface.training import Stage

CLASSES, BATCH = 85_000, 24  # a batch of a size that nothing else has

PRESETS = {
    "sface": sface.Config.paper(),
    "cckd": cckd.Config.paper(),
    "cckd, labels": dataclasses.replace(cckd.Config.paper(), label_weight=1.0),
    "coupleface": coupleface.Config.paper(),
    "coupleface, labels": dataclasses.replace(coupleface.Config.paper(), classification_weight=1.0),
    "lrfr": lrfr.Config.paper(),
    "rco": rco.Config.faces(),
    "gabn": dataclasses.replace(gabn.Config.paper(), packs=()),
    "ida": ida.Config.paper(),
}

METHODS = {"cckd": cckd, "lrfr": lrfr}


@dataclasses.dataclass(frozen=True)
class People:
    """So many people with four images each, of which none is read."""

    classes: int

    def __len__(self) -> int:
        return 4 * self.classes

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image = np.zeros(self.image_shape, np.uint8)
        return {"image": image, "label": np.int32(index // 4), "group": np.int32(index % 2)}

    image_shape = (16, 16, 3)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.int32) // 4

    @property
    def groups(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.int32) % 2

    group_names = ("first", "second")

    @property
    def class_names(self) -> list[str]:
        return [str(number) for number in range(self.classes)]


def shapes(jaxpr) -> set[tuple[int, ...]]:
    """Shapes of everything that a traced program makes, in its inner programs too."""
    found = {variable.aval.shape for equation in jaxpr.eqns for variable in equation.outvars}
    for inner in _inner(jaxpr):
        found |= shapes(inner)
    return found


def _inner(jaxpr):
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")
        ):
            if hasattr(value, "eqns"):
                yield value
            elif hasattr(value, "jaxpr"):
                yield value.jaxpr


def traced(stage: Stage, previous):
    """(state, shapes) of a stage and of all that a step of it makes; nothing is computed."""
    state = jax.eval_shape(stage.init, jax.eval_shape(lambda: jax.random.key(0)), previous)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, *People.image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        "group": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    }
    return state, shapes(jax.make_jaxpr(stage.step)(state, batch).jaxpr)


def whole(made: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [shape for shape in made if BATCH in shape and any(size >= CLASSES for size in shape)]


def smaller(config: recipe.Recipe) -> recipe.Recipe:
    """The preset with networks that are quickly traced: what they do is not the question."""
    changes = {
        "backbone": "iresnet_pico",
        "batch_size": BATCH,
        "workers": 0,
        "image_size": 16,
        "embedding": 32,
    }
    if hasattr(config, "teacher"):
        changes["teacher"] = dataclasses.replace(config.teacher, backbone="mlp_16", embedding=32)
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_makes_a_cosine_of_every_image_with_every_class(name):
    config, split = smaller(PRESETS[name]), data.Split(People(CLASSES), People(8), "people", "verification")
    head = sface.head(config) if name == "sface" else config.head.build()
    stage = recipe.recognition_stage("plain", config, split, recipe.network(config), head, evaluate=False)
    _, made = traced(stage, None)
    assert any(size >= CLASSES for shape in made for size in shape)  # there are prototypes
    assert not whole(made)
    if hasattr(config, "teacher"):
        first, teacher = teacher_stage(config, config.teacher, split)
        previous, made = traced(first, None)
        assert not whole(made)
        if name.startswith("coupleface"):
            rows = previous.params["prototypes"].shape[0]
            banks = {
                "memory": jax.ShapeDtypeStruct((rows, 32), jnp.float32),
                "neighbors": jax.ShapeDtypeStruct((rows, config.neighbors), jnp.int32),
            }
            previous = previous.replace(extra={**previous.extra, **banks})
            _, made = traced(coupleface.student_stage(config, split, teacher), previous)
            assert not whole(made)


@pytest.mark.parametrize("name", ["cckd", "cckd, labels", "lrfr"])
def test_neither_do_the_methods_own_losses(monkeypatch, name):
    config, split = smaller(PRESETS[name]), data.Split(People(CLASSES), People(8), "people", "verification")
    if name == "lrfr":
        config = dataclasses.replace(config, sizes=(4, 6, 8), probe_sizes=(4, 16))
    monkeypatch.setattr(data, "load", lambda *_, **__: split)
    state = None
    for stage in METHODS[name.partition(",")[0]].build(config):
        state, made = traced(stage, state)
        assert not whole(made)


def test_below_it_whole_cosines_are_made():
    config = smaller(PRESETS["sface"])
    split = data.Split(People(500), People(8), "people", "verification")
    stage = recipe.recognition_stage(
        "plain", config, split, recipe.network(config), sface.head(config), evaluate=False
    )
    assert (BATCH, 500) in traced(stage, None)[1]
