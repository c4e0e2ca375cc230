# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
# On Colab this fetches the repository and its packages (a minute); in a checkout it does nothing.
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec("jaxface") is None:
    subprocess.run(["git", "clone", "-q", "https://github.com/jaxface/jaxface"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./jaxface[all]"], check=True)
checkout = next((p for p in (".", "..", "jaxface") if pathlib.Path(p, "experiments").is_dir()), ".")
sys.path.insert(0, checkout)  # `experiments` and `benchmarks` are used from a checkout

# %% [markdown]
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/kernels.ipynb)
#
# # Kernels: exactness, memory and time on the device at hand
#
# `pallas_kernels` needs JAX alone. Each kernel is held here against its plain form: are the values right, what memory does it take, how
# long does it take? Implementations for GPUs and TPUs are chosen where there is one; on a CPU it is XLA's.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from pallas_kernels import binary_conv, dilated_conv
from pallas_kernels import margin_softmax as ms
from pallas_kernels import quantized_attention as qa

print(jax.devices()[0].device_kind)


def measured(function, *arguments, repeats=5):
    """(result, seconds of the fastest of some calls, bytes of temporaries)."""
    compiled = jax.jit(function).lower(*arguments).compile()
    result = jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return result, min(seconds), compiled.memory_analysis().temp_size_in_bytes


# %% [markdown]
# ## Margin softmax without the matrix of cosines
#
# The plain form makes cosines of B faces with C prototypes, [B, C], several times over in the backward pass. The kernel walks over them in
# blocks: memory no longer grows with B · C.

# %%
keys = jax.random.split(jax.random.key(0), 2)
head = ms.SFace()


def plain(embeddings, prototypes, labels):
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    cosines = jnp.clip(unit(embeddings) @ unit(prototypes).T, -1, 1)
    angles = jnp.arccos(cosines * (1 - 1e-6))
    own = jax.nn.one_hot(labels, prototypes.shape[0], dtype=bool)
    weights = jax.lax.stop_gradient(
        head.scale
        * jnp.where(
            own,
            -jax.nn.sigmoid(head.sharpness * (angles - head.intra_angle)),
            jax.nn.sigmoid(head.sharpness * (head.inter_angle - angles)),
        )
    )
    return jnp.sum(weights * cosines) / len(labels)


def fused(embeddings, prototypes, labels):
    return ms.margin_softmax(embeddings, prototypes, labels, head)[0]


rows = []
for classes in (2_000, 8_000, 32_000):
    embeddings = jax.random.normal(keys[0], (128, 128))
    prototypes = jax.random.normal(keys[1], (classes, 128))
    labels = jnp.arange(128)
    a, plain_seconds, plain_bytes = measured(jax.grad(plain, argnums=(0, 1)), embeddings, prototypes, labels)
    b, fused_seconds, fused_bytes = measured(jax.grad(fused, argnums=(0, 1)), embeddings, prototypes, labels)
    difference = max(float(jnp.abs(x - y).max() / jnp.abs(x).max()) for x, y in zip(a, b, strict=True))
    rows.append((classes, plain_bytes / 1e6, fused_bytes / 1e6))
    print(
        f"{classes:6} classes: gradients differ by {difference:.1e} of the largest; "
        f"plain {plain_seconds * 1e3:.1f} ms, {plain_bytes / 1e6:.1f} MB; kernel {fused_seconds * 1e3:.1f} ms, {fused_bytes / 1e6:.1f} MB"
    )

# %%
classes, plain_mb, fused_mb = zip(*rows, strict=True)
plt.loglog(classes, plain_mb, "o-", label="plain")
plt.loglog(classes, fused_mb, "o-", label="kernel")
plt.xlabel("classes")
plt.ylabel("temporaries, MB")
plt.legend()
plt.show()

# %% [markdown]
# ## Convolutions of signs
#
# 32 products of signs are one word. Every output is an integer, so equal means equal.

# %%
signs = jnp.sign(jax.random.normal(keys[0], (1, 56, 56, 64)))
filters = jnp.sign(jax.random.normal(keys[1], (3, 3, 64, 64)))
packed, packed_filters = binary_conv.pack_bits(signs), binary_conv.pack_weights(filters)


def float_convolution(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


a, float_seconds, _ = measured(float_convolution, signs, filters)
b, bit_seconds, _ = measured(
    lambda x, w: binary_conv.binary_conv2d(x, w, channels=64), packed, packed_filters
)
print(f"equal: {bool((a == b).all())}; weights {filters.nbytes:,} -> {packed_filters.nbytes:,} bytes")
print(
    f"float32 {float_seconds * 1e3:.2f} ms, bits {bit_seconds * 1e3:.2f} ms: {float_seconds / bit_seconds:.1f} times as fast"
)

# %% [markdown]
# ## Two cascaded 2×2 filters for one dilated 3×3 (CASSOD)
#
# Without an activation between them they compose to a 3×3 filter. The kernel runs both in one pass.

# %%
x = jax.random.normal(keys[0], (2, 32, 32, 16))
first, second = (jax.random.normal(key, (2, 2, 16)) for key in keys)
cascade = dilated_conv.cassod(x, first, second, dilation=2)
composed = dilated_conv.compose_taps(first, second)
direct = jax.lax.conv_general_dilated(
    x,
    composed.reshape(3, 3, 1, 16),
    (1, 1),
    ((2, 2), (2, 2)),
    rhs_dilation=(2, 2),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=16,
)
print(f"largest difference: {float(jnp.abs(cascade - direct).max()):.1e}")

# %% [markdown]
# ## Attention on integers
#
# Both products of attention on 8-bit (or 4-bit) codes, in place of float ones, without training ("ptq").

# %%
q, k, v = jax.random.normal(jax.random.key(2), (3, 1, 4, 128, 32))


def attention(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(q.shape[-1]))
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


exact = attention(q, k, v)
for bits in (8, 6, 4):
    some = qa.quantized_attention(q, k, v, mode="ptq", bits=(bits, bits, bits, bits))
    print(f"{bits} bits: relative error {float(jnp.linalg.norm(some - exact) / jnp.linalg.norm(exact)):.4f}")

# %% [markdown]
# `make bench-kernels` measures all of them against their peers, `make gpu-report` on a GPU.
