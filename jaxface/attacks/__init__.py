"""Optimization of inputs against networks, for people who want to be hidden from them: pure functions, nothing is trained."""

from jaxface.attacks.background import background_attack, background_mask
from jaxface.attacks.cloak import (
    Cloak,
    apply_cloak,
    cloak_features,
    make_cloak,
)
from jaxface.attacks.surrogate import surrogate

__all__ = [
    "Cloak",
    "apply_cloak",
    "background_attack",
    "background_mask",
    "cloak_features",
    "make_cloak",
    "surrogate",
]
