"""TPU kernels: channels on lanes, columns on sublanes, rows leading; intermediate maps stay in vector memory.

Each kernel has a module of its own; all of them work on bands of rows (`tpu_band`).
"""

from pallas_kernels.dilated_conv.tpu_band import LANES, band_rows
from pallas_kernels.dilated_conv.tpu_gradient import cascade_gradient, depthwise_gradient
from pallas_kernels.dilated_conv.tpu_pooling import conv_ccp
from pallas_kernels.dilated_conv.tpu_stages import cascade, depthwise

__all__ = ["cascade", "cascade_gradient", "conv_ccp", "depthwise", "depthwise_gradient", "obstacle"]


def obstacle(op, x, *arrays, dilation=1, stride=1) -> str | None:
    """Why these shapes cannot run here, or None."""
    if stride > 1:
        return "it has stride 1"
    *filters, pointwise = (*arrays, None) if op == "conv_ccp" else arrays
    if op == "conv_ccp":
        k = filters[0].shape[0]
        rows = band_rows(x, k // 2, 1, min(filters[0].shape[-1], LANES), pooled=True, taps=k * k)
    elif op == "depthwise":
        reach = filters[0].shape[0] // 2 * dilation
        products, outputs = (0, x.shape[-1]) if pointwise is None else (1, pointwise.shape[-1])
        rows = band_rows(x, reach, products, outputs)
        rows = min(rows, band_rows(x, reach, 0, x.shape[-1], backward=True))
    else:
        a, b = filters
        dense = b.ndim == 4
        products = (8 if a.ndim == 4 else 4) if dense else 0 if pointwise is None else 1
        outputs = b.shape[-1] if dense or pointwise is None else pointwise.shape[-1]
        rows = band_rows(x, dilation, products, outputs, cascade=True)
        if not dense:
            rows = min(rows, band_rows(x, dilation, 0, x.shape[-1], backward=True, cascade=True))
        if a.ndim == 4 and outputs > 512:
            return f"two dense stages are for at most 512 output channels; got {outputs}"
    if rows == 0:
        return f"a band of {x.shape[2]} columns with its halo is larger than the vector memory"
    return None
