"""Optical flow as video codecs use it: warping, and a pyramid that finds it (arXiv:1611.00850, arXiv:1812.00101).

Methods: edic
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxface.layers.one_draw import kernel, near_zero

WIDTHS = (32, 64, 32, 16, 2)
"""Channels of a level of the published pyramid."""


def warp(image: jax.Array, flow: jax.Array) -> jax.Array:
    """An image looked up where a flow points to.

        out(p) = image(p + v(p)),   bilinear, coordinates held to the border

    Args:
      image: [B, H, W, C] float.
      flow: [B, H, W, 2], (x, y) in pixels.

    Returns:
      [B, H, W, C].

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> image = jnp.arange(4.0).reshape(1, 1, 4, 1)
      >>> warp(image, jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 1, 4, 2)))[0, 0, :, 0].tolist()
      [1.0, 2.0, 3.0, 3.0]
    """
    if flow.shape != (*image.shape[:3], 2) or image.ndim != 4:
        raise ValueError(
            f"flow: needs [B, H, W, 2] of an image [B, H, W, C], got {flow.shape} and {image.shape}"
        )
    height, width = image.shape[1:3]
    x = jnp.clip(jnp.arange(width) + flow[..., 0], 0, width - 1)
    y = jnp.clip(jnp.arange(height)[:, None] + flow[..., 1], 0, height - 1)
    left, top = (
        jnp.clip(jnp.floor(jax.lax.stop_gradient(at)), 0, size - 1) for at, size in ((x, width), (y, height))
    )
    in_x, in_y = (x - left)[..., None], (y - top)[..., None]
    columns = [left.astype(jnp.int32), jnp.minimum(left + 1, width - 1).astype(jnp.int32)]
    rows = [top.astype(jnp.int32), jnp.minimum(top + 1, height - 1).astype(jnp.int32)]
    pick = jax.vmap(lambda image, row, column: image[row, column])
    upper = pick(image, rows[0], columns[0]) * (1 - in_x) + pick(image, rows[0], columns[1]) * in_x
    lower = pick(image, rows[1], columns[0]) * (1 - in_x) + pick(image, rows[1], columns[1]) * in_x
    return upper * (1 - in_y) + lower * in_y


def enlarged_flow(flow: jax.Array) -> jax.Array:
    """A flow [B, h, w, 2] in pixels of twice the size: [B, 2 h, 2 w, 2], bilinear with half-pixel centers, twice as long."""
    batch, height, width, _ = flow.shape
    return 2 * jax.image.resize(flow, (batch, 2 * height, 2 * width, 2), "bilinear")


class FlowPyramid(nn.Module):
    """SpyNet: the flow from a frame to another, from coarse to fine; each level adds to what the one below found.

        v <- up(v) + net_l([frame, warp(reference, up(v)), up(v)])

    Attributes:
      levels: halvings and one.
      widths: channels of the five convolutions 7x7 of a level, the last of them 2.
    """

    levels: int = 4
    widths: tuple[int, ...] = WIDTHS

    @nn.compact
    def __call__(self, frame: jax.Array, reference: jax.Array) -> jax.Array:
        """[B, H, W, 3] twice -> flow [B, H, W, 2], (x, y) in pixels, so that warp(reference, flow) is like the frame."""
        pyramid = [(frame, reference)]
        for _ in range(self.levels - 1):
            pyramid.append(tuple(nn.avg_pool(image, (2, 2), (2, 2)) for image in pyramid[-1]))
        coarsest = pyramid[-1][0]
        flow = jnp.zeros((*coarsest.shape[:3], 2), coarsest.dtype)
        for level, (target, source) in enumerate(reversed(pyramid), start=1):
            flow = enlarged_flow(flow) if level > 1 else flow
            x = jnp.concatenate([target, warp(source, flow), flow], axis=-1)
            for i, width in enumerate(self.widths, start=1):
                last = i == len(self.widths)
                start = near_zero if last else kernel  # no flow before anything is learned
                x = nn.Conv(width, (7, 7), padding="SAME", kernel_init=start, name=f"level{level}_conv{i}")(x)
                x = x if last else nn.relu(x)
            flow = flow + x
        return flow
