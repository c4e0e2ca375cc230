"""Optimization of inputs against networks, for people who want to be hidden from them: pure functions, nothing is trained."""

from jaxface.attacks.cloak import (
    Cloak,
    accumulated_gradient,
    apply_cloak,
    check_photos,
    cloak_features,
    cloak_step,
    fi_uap_objective,
    fi_uap_plus_objective,
    ga_opom_step,
    make_cloak,
    opom_objective,
    opom_step,
    start_cloak,
)
from jaxface.attacks.hulls import hull_coefficients
from jaxface.attacks.surrogate import surrogate

__all__ = [
    "Cloak",
    "accumulated_gradient",
    "apply_cloak",
    "check_photos",
    "cloak_features",
    "cloak_step",
    "fi_uap_objective",
    "fi_uap_plus_objective",
    "ga_opom_step",
    "hull_coefficients",
    "make_cloak",
    "opom_objective",
    "opom_step",
    "start_cloak",
    "surrogate",
]
