"""Embeddings that a method works on after training: by a frozen network, trained first or of a finished run, or given as data.

Methods: ida
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recipes.heads import HeadSpec
from experiments.recipes.recognition import Recipe, check_trained, network, recognition_stage
from experiments.recipes.teachers import TeacherSpec, teacher_stage
from jaxface import data as inputs
from jaxface import training
from jaxface.layers.prototypes import l2_normalize
from jaxface.training.distributed import on_host


class FrozenEmbedding:
    """Unit embeddings of any source, all by one network in one state.

    Args:
      recipe: of the network, where it is trained first.
      split: data that it is trained on.
      head: its loss.
      run: work directory of a finished run whose network is used instead.
      vectors: the records are embeddings themselves; there is no network, and no stage.

    Attributes:
      stage: the first stage of the run, which ends in the network; None without one.
      teacher: the network; None without one.
      flip: whether mirror images are added, as they are where training mirrors.

    Raises:
      UserError: no such run, or one whose network does not take the images; `init_from` where no network is trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        split: inputs.Split,
        head: HeadSpec,
        *,
        run: str | None = None,
        vectors: bool = False,
    ):
        self.stage = self.teacher = None
        self.flip = not vectors and recipe.augment.flip > 0
        if vectors or run is not None:
            check_trained(recipe.init_from, "data of embeddings" if vectors else "run")
        if not vectors and run is None:
            model = network(recipe)
            self.stage = recognition_stage("recognition", recipe, split, model, head.build())
            self.teacher = training.Teacher(model)
        elif not vectors:
            stage, self.teacher = teacher_stage(recipe, TeacherSpec(run=run), split)
            self.stage = dataclasses.replace(stage, name="recognition")
        self._remembered: tuple = (None, None)

    def installed(self, state: training.TrainState) -> dict:
        """`extra` of a stage after `state`, the end of `stage`: the network, frozen."""
        return {} if self.teacher is None else self.teacher.installed({}, state)

    def embed(self, extra: dict, source: inputs.Source) -> np.ndarray:
        """[N, D] float32 of a source, or [T, D] of its templates."""
        if self.teacher is None:
            rows = getattr(source, "vectors", None)
            if rows is None:  # some of them
                rows = np.stack([source[i]["image"].ravel() for i in range(len(source))])
        elif isinstance(source, inputs.TemplateSource):
            rows = self.teacher.embed_templates(extra, source, flip=self.flip)
        else:
            rows = self.teacher.embed(extra, source, flip=self.flip)
        return np.asarray(l2_normalize(jnp.asarray(rows, jnp.float32)))

    def embed_once(self, extra: dict, source: inputs.Source) -> np.ndarray:
        """`embed` of a source that several stages ask for, remembered for the same network."""
        leaves = jax.tree.leaves(on_host({**extra.get("teacher", {}), "prototypes": None}))
        key = id(source), *(float(np.asarray(leaf, np.float64).sum()) for leaf in leaves)
        if self._remembered[0] != key:
            self._remembered = (key, self.embed(extra, source))
        return self._remembered[1]


def unfrozen(extra: dict) -> tuple[dict, dict]:
    """(parameters, `extra`) of the last stage of a run, whose network is the frozen one; `frozen_extra` finds it there."""
    extra = dict(extra)
    frozen = extra.pop("teacher", None)
    if frozen is None:
        return {}, extra
    params = {"backbone": frozen["params"]}
    if "prototypes" in frozen:
        params["prototypes"] = frozen["prototypes"]
    return params, extra | training.statistics(frozen)


def frozen_extra(state: training.TrainState) -> dict:
    """`extra` with the frozen network, also of a last stage whose parameters it is."""
    if "backbone" not in state.params:
        return state.extra
    return {**state.extra, "teacher": training.network_variables(state.params["backbone"], state.extra)}
