"""Optimization of inputs against networks, for people who want to be hidden from them: pure functions, nothing is trained."""

from jaxface.attacks.background import background_attack, background_mask
from jaxface.attacks.cloak import (
    Cloak,
    apply_cloak,
    cloak_features,
    make_cloak,
)
from jaxface.attacks.niqa_attack import (
    Attacked,
    PerceptualAttack,
    critical_weight,
    eigen_distortion,
    ladder_around,
    maximum_differentiation,
    perceptual_attack,
    shuffled_changes,
)
from jaxface.attacks.surrogate import surrogate

__all__ = [
    "Attacked",
    "Cloak",
    "PerceptualAttack",
    "apply_cloak",
    "background_attack",
    "background_mask",
    "cloak_features",
    "critical_weight",
    "eigen_distortion",
    "ladder_around",
    "make_cloak",
    "maximum_differentiation",
    "perceptual_attack",
    "shuffled_changes",
    "surrogate",
]
