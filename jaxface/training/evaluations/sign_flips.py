"""How many binary weights still change their sign.

Methods: rbonn, bamsprod
"""

from jaxface.optimizers import flip_rate
from jaxface.training.step import TrainState


def sign_flips(state: TrainState) -> dict[str, float]:
    """`signs/flip_rate`, the share of binary weights changed per step over the last ones (`jaxface.optimizers.flip_rate`).

    The optimizer of the state needs `track_sign_flips` in its chain.
    """
    return {"signs/flip_rate": float(flip_rate(state.opt_state))}
