"""What the gate of RBONN lets through.

Methods: rbonn
"""

import numpy as np

from jaxface.layers.rbonn import Variant, backtrack, density_mask
from jaxface.optimizers import last_gradient
from jaxface.training.distributed import on_host
from jaxface.training.step import TrainState


class DensityGate:
    """What the gates of a network's `RBOConv` layers do: `evaluate` of a stage.

        gate/open         share of output channels that the gate lets through
        gate/recurrence   mean of U
        gate/flipped      share of gated weights whose sign the correction changes
        gate/weight       mean |w| of gated channels, and gate/other_weight of the others; 0 where there are none

    Args:
      variant: of the layers.
      tau: of the gate.
    """

    def __init__(self, variant: Variant, tau: float):
        self.variant, self.tau = variant, tau

    def __call__(self, state: TrainState) -> dict[str, float]:
        params = on_host(state.averaged_params["backbone"])
        gradients = {} if self.variant == "paper" else last_gradient(state.opt_state).get("backbone", {})
        layers = list(_layers(params, on_host(gradients)))
        masks, kernels, flips = [], [], []
        for layer, gradient in layers:
            kernel = layer["kernel"]
            alpha = 1 / layer["density"] if "density" in layer else np.abs(layer["scale"])
            mask = density_mask(alpha, kernel, self.tau, self.variant)
            moved = backtrack(kernel, layer["recurrence"], mask, gradient.get("kernel"), self.variant)
            flips.append(np.asarray((moved >= 0) != (kernel >= 0)).mean(axis=(0, 1, 2)))
            masks.append(np.asarray(mask))
            kernels.append(np.abs(kernel).mean(axis=(0, 1, 2)))
        mask, weight, flipped = (np.concatenate(values) for values in (masks, kernels, flips))
        gated = max(mask.sum(), 1.0)
        return {
            "gate/open": float(mask.mean()),
            "gate/recurrence": float(np.mean([layer["recurrence"].mean() for layer, _ in layers])),
            "gate/flipped": float((flipped * mask).sum() / gated),
            "gate/weight": float((weight * mask).sum() / gated),
            "gate/other_weight": float((weight * (1 - mask)).sum() / max((1 - mask).sum(), 1.0)),
        }


def _layers(params, gradients):
    """(parameters, last gradients) of every layer that has a recurrence."""
    if "recurrence" in params:
        yield params, gradients
        return
    for name, child in params.items():
        if isinstance(child, dict):
            yield from _layers(child, gradients.get(name, {}))
