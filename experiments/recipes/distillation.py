"""A student and a frozen teacher, asked about the same images: by embeddings, class scores or inner layers.

Methods: rco
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.recipes.recognition import Recognition
from jaxface import models, training
from jaxface.errors import UserError

Form = Literal["mimic", "logits", "hint"]


class Answers(NamedTuple):
    """What a student and its teacher say about images, each [B, …], in one form.

    Attributes:
      student, teacher: embeddings, class scores or features of an inner layer, of one shape.
      embeddings: [B, D] of the student.
      extra: the student's after the pass.
    """

    student: jax.Array
    teacher: jax.Array
    embeddings: jax.Array
    extra: dict


class Pair:
    """A student and the teacher that is installed in its `extra`.

    In the form "hint" a linear regressor gives the student's layer the channels of the teacher's.

    Args:
      recognition: the student.
      teacher: the teachers' network.
      form: what is compared.
      scale: logits: of the cosines with prototypes, where classes are read from those.
      hint_layers: hint: layer of the student and layer of the teacher.
      teacher_state: hint: shapes of a teacher's state.

    Raises:
      UserError: hint: a network without such a layer, or planes of different sizes.
    """

    def __init__(
        self,
        recognition: Recognition,
        teacher: training.Teacher,
        form: Form,
        *,
        scale: float,
        hint_layers: tuple[str, str],
        teacher_state: training.TrainState | None,
    ):
        self.recognition, self.recognizer = recognition, recognition.recognizer
        self.teacher, self.form = teacher, form
        self.scale, self.hint_layers = scale, hint_layers
        self._channels = self._hint_channels(teacher_state) if form == "hint" else None

    def _hint_channels(self, teacher_state) -> tuple[int, int]:
        images = jax.ShapeDtypeStruct((1, *self.recognizer.image_shape), jnp.float32)

        def features(teacher_state, images):
            params, extra = self.recognizer.init(jax.random.key(0))
            return self._hints(params, self.teacher.installed(extra, teacher_state), images)[:2]

        student, teacher = (leaf.shape for leaf in jax.eval_shape(features, teacher_state, images))
        if student[:-1] != teacher[:-1]:
            planes = [" x ".join(map(str, shape[1:-1])) or "none" for shape in (student, teacher)]
            raise UserError(f"hint_layers: need planes of one size, got {planes[0]} and {planes[1]}")
        return student[-1], teacher[-1]

    def _hints(self, params, extra, images, **options) -> Answers:
        """Features of the two layers, before the regressor."""
        student_layer, teacher_layer = self.hint_layers
        variables = training.network_variables(params["backbone"], extra)
        embeddings, features, updated = models.apply_with_layer(
            self.recognizer.model, variables, images, layer=student_layer, **options
        )
        teacher = self.teacher.layer(extra, images, teacher_layer)
        return Answers(features, teacher, embeddings, {**extra, **updated})

    def init(self, rng: jax.Array, *, prototypes: bool) -> tuple[dict, dict]:
        """A fresh student, (params, extra); without class prototypes where nothing would train them."""
        params, extra = self.recognition.init(rng)
        if not prototypes:
            params = {name: part for name, part in params.items() if name not in ("prototypes", "bias")}
        if self._channels:
            kernel = jax.nn.initializers.lecun_normal()(jax.random.fold_in(rng, 1), self._channels)
            params["regressor"] = {"kernel": kernel, "bias": jnp.zeros(self._channels[1])}
        return params, extra

    def answers(self, params, extra, images: jax.Array, *, rng: jax.Array | None = None) -> Answers:
        """Of images [B, H, W, C] in [-1, 1]; with `rng` the student is in training mode, the teacher never."""
        train = rng is not None
        if self.form == "hint":
            hints = self._hints(params, extra, images, train=train, rngs={"dropout": rng} if train else None)
            regressor = params["regressor"]
            regressed = hints.student.astype(jnp.float32) @ regressor["kernel"] + regressor["bias"]
            return hints._replace(student=regressed)
        if train:
            embeddings, updated = self.recognizer.train_embeddings(params, extra, images, rng)
        else:
            variables = training.network_variables(params["backbone"], extra)
            embeddings, updated = self.recognizer.model.apply(variables, images, train=False), extra
        teacher = self.teacher.embeddings(extra, images)
        if self.form == "mimic":
            return Answers(embeddings, teacher, embeddings, updated)
        classes = self.recognizer.classes
        student_scores = training.class_scores(params, embeddings, classes, scale=self.scale)
        teacher_scores = self.teacher.class_scores(extra, teacher, classes, scale=self.scale)
        return Answers(student_scores, teacher_scores, embeddings, updated)
