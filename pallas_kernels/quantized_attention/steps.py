"""What a call of the attention is made of beside its operands: the quantization steps, and what is static."""

from typing import Literal, NamedTuple

import jax

Mode = Literal["lsq", "ptq"]


class AttnSteps(NamedTuple):
    """Quantization steps (or zero points) of an attention's four operands.

    Attributes:
      q, k: scalar, [H] (per head), or, mode "ptq", [B or 1, H or 1, N or 1] as `quantize_absmax` returns them.
      v: scalar, [H], or, mode "ptq", [B or 1, H or 1, d] as `quantize_channels` returns them.
      p: scalar or [H] in mode "lsq"; None in mode "ptq", whose step is static.
    """

    q: jax.Array | float
    k: jax.Array | float
    v: jax.Array | float
    p: jax.Array | float | None = None


class Config(NamedTuple):
    """The static half of a call."""

    mode: str
    bits: tuple[int, int, int, int]
    implementation: str

    @property
    def largest(self) -> int:
        """Largest code of a probability: 2^b - 1; at most 127 in mode "ptq"."""
        codes = 2 ** self.bits[3] - 1
        return codes if self.mode == "lsq" else min(codes, 127)
