"""Heads: a margin softmax with its hyper-parameters, as one value that an experiment hands around.

Each is a frozen dataclass with `loss(cosines, labels) -> [B]`, the plain loss of this package, `terms`, what it sums, and
`fused()`, the same for `pallas_kernels.margin_softmax`, which makes no [B, C].

Methods: acw, bamsprod, cckd, cloak, coupleface, dcp_nas, gabn, ida, lrfr, ota, rbonn, rco, sface
"""

import dataclasses
from typing import Annotated, Protocol

import jax

from jaxface.checks import Angle, NonNegative, Positive, Range, check_fields
from jaxface.errors import UserError
from jaxface.losses.sface import sface_loss, sface_terms
from jaxface.losses.softmax import arcface_loss, cosface_loss, cross_entropy, softmax_loss
from jaxface.registry import Registry
from pallas_kernels import margin_softmax


class Head(Protocol):
    """What `HEADS` holds the classes of."""

    def loss(self, cosines: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B] float32 of cosines [B, C] and labels [B] int32 in [0, C)."""

    def terms(self, cosines: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """What the loss is the sum of, [B] each, by name; nothing where it is one term."""
        return {}

    def fused(self) -> margin_softmax.Head:
        """The same loss for `pallas_kernels.margin_softmax`."""


HEADS: Registry[type[Head]] = Registry("loss", "jaxface.losses")
"""Every head by name, registered where it is defined."""


@HEADS.register("softmax")
@dataclasses.dataclass(frozen=True)
class Softmax(Head):
    """`softmax_loss`: no margin.

    Attributes:
      scale: s > 0.

    Raises:
      UserError: a value out of its range.
    """

    scale: Annotated[float, Positive] = 64.0

    def __post_init__(self):
        check_fields(self)

    def loss(self, cosines: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B]."""
        return softmax_loss(cosines, labels, scale=self.scale)

    def fused(self) -> margin_softmax.Head:
        """The same loss for `margin_softmax`."""
        return margin_softmax.softmax(self.scale)


@HEADS.register("cosface")
@dataclasses.dataclass(frozen=True)
class CosFace(Head):
    """`cosface_loss`: a margin on the cosine.

    Attributes:
      scale: s > 0.
      margin: m in [0, 2].

    Raises:
      UserError: a value out of its range.
    """

    scale: Annotated[float, Positive] = 64.0
    margin: Annotated[float, Range(0, 2)] = 0.35

    def __post_init__(self):
        check_fields(self)

    def loss(self, cosines: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B]."""
        return cosface_loss(cosines, labels, scale=self.scale, margin=self.margin)

    def fused(self) -> margin_softmax.Head:
        """The same loss for `margin_softmax`."""
        return margin_softmax.cosface(self.scale, self.margin)


@HEADS.register("arcface")
@dataclasses.dataclass(frozen=True)
class ArcFace(Head):
    """`arcface_loss`: a margin on the angle.

    Attributes:
      scale: s > 0.
      margin: m, radians in [0, π].

    Raises:
      UserError: a value out of its range.
    """

    scale: Annotated[float, Positive] = 64.0
    margin: Annotated[float, Angle] = 0.5

    def __post_init__(self):
        check_fields(self)

    def loss(self, cosines: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B]."""
        return arcface_loss(cosines, labels, scale=self.scale, margin=self.margin)

    def fused(self) -> margin_softmax.Head:
        """The same loss for `margin_softmax`."""
        return margin_softmax.arcface(self.scale, self.margin)


@HEADS.register("sface")
@dataclasses.dataclass(frozen=True)
class SFace(Head):
    """`sface_loss`: weighted cosines without a normalizer.

    Attributes:
      scale: s > 0.
      sharpness: k ≥ 0, per radian.
      intra_angle: a, radians in [0, π].
      inter_angle: b, radians in [0, π].

    Raises:
      UserError: a value out of its range.
    """

    scale: Annotated[float, Positive] = 64.0
    sharpness: Annotated[float, NonNegative] = 80.0
    intra_angle: Annotated[float, Angle] = 0.87
    inter_angle: Annotated[float, Angle] = 1.2

    def __post_init__(self):
        check_fields(self)

    def loss(self, cosines: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B]."""
        return sface_loss(cosines, labels, **dataclasses.asdict(self))

    def terms(self, cosines: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """The pull to the own class, `intra`, and the push from the others, `inter`."""
        terms = sface_terms(cosines, labels, **dataclasses.asdict(self))
        return {"intra": terms.intra, "inter": terms.inter}

    def fused(self) -> margin_softmax.Head:
        """The same loss for `margin_softmax`."""
        return margin_softmax.SFace(**dataclasses.asdict(self))


@HEADS.register("linear")
@dataclasses.dataclass(frozen=True)
class Linear(Head):
    """Cross-entropy of a linear layer's scores, a weight per class and a bias, instead of scaled cosines."""

    def loss(self, cosines: jax.Array, labels: jax.Array) -> jax.Array:
        """Losses [B] float32 of scores [B, C] of any size, here no cosines, and labels [B] int32 in [0, C)."""
        return cross_entropy(cosines, labels)

    def fused(self) -> margin_softmax.Head:
        """Raises UserError: only cosines have a fused form."""
        raise UserError("loss: 'linear' has no fused form; use softmax, cosface, arcface or sface")


def create_head(name: str, **options: float | None) -> Head:
    """A head by name, with those of the options that it has.

    Args:
      name: one of `HEADS`: softmax, cosface, arcface, sface, linear.
      **options: such as `scale` and `margin`; what the head has no field for is not used, and None
        leaves the head's own default.

    Raises:
      UserError: an unknown name, or a value out of its range.

    Example:
      >>> create_head("cosface", scale=16.0, margin=0.2)
      CosFace(scale=16.0, margin=0.2)
      >>> create_head("softmax", scale=16.0, margin=0.2)
      Softmax(scale=16.0)
    """
    head = HEADS[name]
    known = {field.name for field in dataclasses.fields(head)}  # ty: ignore[invalid-argument-type] - each is a dataclass
    return head(**{name: value for name, value in options.items() if name in known and value is not None})
