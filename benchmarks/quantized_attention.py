"""Quantized attention against bfloat16 attention: `python -m benchmarks.quantized_attention [--quick] [--out FOLDER]`.

Rows are the shapes of vision transformers, DETR and long sequences; each times the codes-in kernel ("codes": what a quantized
layer before it would feed), the float-in call ("float": the quantizers included) and the peers, in turns in one process, with
the relative error against float64 beside each. Operations are counted as 4 B H Nq Nk d for all.

The peers are attention without quantization: other values for less work, so no default can choose them. On a CPU the products of
codes are taken in float32, or in bfloat16 where the processor multiplies that, exactly in either.
"""

import argparse
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from pallas_kernels import quantized_attention as qa
from pallas_kernels.common import round_up, target_device

# name: (B, H, Nq, Nk, d), [(mode, bits)], target ratio to cuDNN where there is one
LSQ, LSQ2, PTQ = ("lsq", (8, 8, 8, 7)), ("lsq", (2, 2, 2, 2)), ("ptq", (8, 8, 8, 8))
ROWS = {
    "ViT-S N197": ((256, 6, 197, 197, 64), (LSQ, LSQ2), 1.2),
    "ViT-B N197": ((256, 12, 197, 197, 64), (LSQ,), 1.2),
    "DETR encoder N850": ((16, 8, 850, 850, 32), (LSQ,), 0.7),
    "DETR encoder N1050": ((16, 8, 1050, 1050, 32), (LSQ,), 0.7),
    "DETR cross 100x850": ((16, 8, 100, 850, 32), (LSQ,), None),
    "N4096 d64": ((2, 16, 4096, 4096, 64), (PTQ, LSQ2), 1.0),
    "N16384 d64": ((2, 16, 16384, 16384, 64), (PTQ,), 1.0),
    "N4096 d128": ((2, 16, 4096, 4096, 128), (PTQ,), 1.3),
    "N16384 d128": ((1, 8, 16384, 16384, 128), (PTQ,), 1.3),
}
CPU_ROWS = {
    "ViT-S N197": ((2, 6, 197, 197, 64), (LSQ, LSQ2, PTQ), None),
    "DETR encoder N850": ((1, 8, 850, 850, 32), (LSQ,), None),
    "N1024 d64": ((1, 4, 1024, 1024, 64), (PTQ,), None),
}
QUICK_ROWS = {"quick N40": ((1, 2, 40, 40, 32), (LSQ, PTQ), None)}
MATERIALIZED = 2048  # longer sequences do not try the peers that hold all scores


def operands(shape):
    """q, k, v [B, H, N, d] in bfloat16, standard normal."""
    batch, heads, queries, keys, d = shape
    rng = np.random.default_rng(0)
    sizes = [(batch, heads, queries, d)] + [(batch, heads, keys, d)] * 2
    return [jnp.asarray(rng.standard_normal(size, np.float32), jnp.bfloat16) for size in sizes]


def lsq_steps(q, k, v, bits):
    """Where training of learned steps starts, per head."""
    steps = [
        2 * jnp.mean(jnp.abs(x.astype(jnp.float32)), (0, 2, 3)) / math.sqrt(2 ** (b - 1) - 1)
        for x, b in zip((q, k, v), bits[:3], strict=True)
    ]
    return qa.AttnSteps(*steps, jnp.full((q.shape[1],), 2 / k.shape[2] / math.sqrt(2 ** bits[3] - 1)))


def codes_of(q, k, v, mode, bits):
    """(q8, k8, v8ᵀ), steps."""
    if mode == "ptq":
        q8, q_step = qa.quantize_absmax(q, granularity="block", block=128)
        k8, k_step, _ = qa.quantize_smooth(k)
        v8, v_step = qa.quantize_channels(v)
        return (q8, k8, v8.swapaxes(2, 3)), qa.AttnSteps(q_step, k_step, v_step)
    steps = lsq_steps(q, k, v, bits)
    q8, k8, v8 = (
        qa.quantize_lsq(x, s[None, :, None, None], bits=b)
        for x, s, b in zip((q, k, v), steps[:3], bits[:3], strict=True)
    )
    return (q8, k8, v8.swapaxes(2, 3)), steps


def padded(codes, steps, keys):
    """Codes as a layer would write them for the Hopper kernels: whole groups of tokens, none is copied; and lengths."""
    q8, k8, v8_t = codes
    queries_to, keys_to = round_up(q8.shape[2], 8), round_up(keys, 32 if keys <= 256 else 128)
    if (queries_to, keys_to) == (q8.shape[2], keys):
        return codes, steps, None

    def pad(x, axis, size):
        return jnp.pad(x, [(0, size - x.shape[i] if i == axis else 0) for i in range(x.ndim)])

    if steps.q.ndim == 3:
        steps = steps._replace(q=pad(steps.q, 2, queries_to), k=pad(steps.k, 2, keys_to))
        steps = jax.tree.map(lambda s: jnp.where(s > 0, s, 1.0), steps)
    lengths = jnp.full((q8.shape[0],), keys, jnp.int32)
    return (pad(q8, 2, queries_to), pad(k8, 2, keys_to), pad(v8_t, 3, keys_to)), steps, lengths


def float64_attention(q, k, v, rows):
    """Exact attention of the first head's first queries."""
    q, k, v = (np.asarray(x[0, 0], np.float64) for x in (q, k, v))
    s = q[:rows] @ k.T / math.sqrt(q.shape[-1])
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def relative(actual, wanted):
    return float(np.linalg.norm(np.asarray(actual, np.float64) - wanted) / np.linalg.norm(wanted))


def measure(name, shape, mode, bits, target, *, kernels, repeats, iterations):
    """One row: times, errors, ratios to each peer, and what could not run."""
    batch, heads, queries, keys, d = shape
    q, k, v = operands(shape)
    codes, steps = codes_of(q, k, v, mode, bits)
    wide, wide_steps, lengths = codes, steps, None
    if target_device().platform == "gpu":
        wide, wide_steps, lengths = padded(codes, steps, keys)
    tokens_first = tuple(x.swapaxes(1, 2) for x in (q, k, v))
    long = max(queries, keys) > MATERIALIZED

    def from_codes(q8, k8, v8_t, steps, lengths, implementation):
        return qa.quantized_attention_codes(
            q8, k8, v8_t, steps=steps, bits=bits, mode=mode, kv_lengths=lengths, implementation=implementation
        )

    def from_floats(q, k, v, steps, implementation):
        steps = steps if mode == "lsq" else None
        return qa.quantized_attention(
            q, k, v, steps=steps, bits=bits, mode=mode, implementation=implementation
        )

    def dense(q, k, v, implementation):
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)

    variants, arguments = {}, {}
    for kernel in kernels:
        if kernel == "xla" and long:
            continue
        variants[f"{kernel} codes"] = functools.partial(from_codes, implementation=kernel)
        arguments[f"{kernel} codes"] = (*wide, wide_steps, lengths)
        variants[f"{kernel} float"] = functools.partial(from_floats, implementation=kernel)
        arguments[f"{kernel} float"] = (q, k, v, steps)
    if target_device().platform == "gpu":
        variants["cudnn bf16"] = functools.partial(dense, implementation="cudnn")
        arguments["cudnn bf16"] = tokens_first
    if not long:
        variants["xla bf16"] = functools.partial(dense, implementation="xla")
        arguments["xla bf16"] = tokens_first
    if target_device().platform == "cpu":
        variants["xla f32"] = variants["xla bf16"]
        arguments["xla f32"] = tuple(x.astype(jnp.float32) for x in tokens_first)

    rows = min(queries, 64)
    exact = float64_attention(q, k, v, rows)
    wanted = definition(codes, steps, mode, bits, rows)
    errors = {}

    def check(variant, out):
        ours = variant.endswith(("codes", "float"))
        head = np.asarray(out[0, 0, :rows] if ours else out[0, :rows, 0], np.float64)
        errors[variant] = relative(head, exact)
        # "ptq": a running maximum quantizes on a finer grid than the definition's.
        if ours and relative(head, wanted) > (0.02 if mode == "lsq" else 0.1):
            raise RuntimeError(f"wrong, {relative(head, wanted):.3g} from the definition")

    row = {"row": name, "shape": shape, "mode": mode, "bits": bits, "target": target}
    timed = common.compare(
        variants,
        arguments,
        ours=next(n for n in variants if n.endswith("codes")),
        peer=next((n for n in ("cudnn bf16", "xla bf16") if n in variants), next(iter(variants))),
        repeats=repeats,
        iterations=iterations,
        budget=2.5,
        check=check,
    )
    row["error"] = errors
    if "seconds" not in timed:
        return row | timed
    medians = {n: entry["seconds_median"] for n, entry in timed["seconds"].items()}
    operations = 4 * batch * heads * queries * keys * d
    row |= timed
    row["ratio_to"] = {
        p: {n: medians[p] / medians[n] for n in medians} for p in medians if p.endswith(("bf16", "f32"))
    }
    row["tera_operations_per_second"] = {n: operations / seconds / 1e12 for n, seconds in medians.items()}
    return row


def definition(codes, steps, mode, bits, rows):
    """The definition for the first head's first queries, in NumPy float64."""
    q8, k8, v8_t = (np.asarray(x[0, 0], np.float64) for x in codes)

    def first(step):
        step = np.asarray(step, np.float64)
        return step[0, 0] if step.ndim == 3 else step[0]

    q_step = first(steps.q)
    q_step = q_step[:rows, None] if q_step.ndim else q_step
    s = (q8[:rows] @ k8.T) * q_step * first(steps.k) / math.sqrt(q8.shape[-1])
    e = np.exp(s - s.max(-1, keepdims=True))
    total = e.sum(-1, keepdims=True)
    if mode == "ptq":
        return np.round(127 * e) @ v8_t.T / 127 / total * first(steps.v)
    p_codes = np.clip(np.round(e / total / first(steps.p)), 0, 2 ** bits[3] - 1)
    return p_codes @ v8_t.T * first(steps.p) * first(steps.v)


def gradient_row(shape, *, kernels, repeats, iterations):
    """A training step's attention: gradients for q, k, v (and the steps), against those of bfloat16 attention."""
    q, k, v = operands(shape)
    steps = lsq_steps(q, k, v, (4, 4, 4, 4))
    tokens_first = tuple(x.swapaxes(1, 2) for x in (q, k, v))

    def ours(q, k, v, steps, implementation):
        def loss(q, k, v, steps):
            out = qa.quantized_attention(
                q, k, v, steps=steps, bits=(4, 4, 4, 4), implementation=implementation
            )
            return jnp.sum(out.astype(jnp.float32))

        return jax.grad(loss, (0, 1, 2, 3))(q, k, v, steps)

    def dense(q, k, v, implementation):
        def loss(q, k, v):
            out = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
            return jnp.sum(out.astype(jnp.float32))

        return jax.grad(loss, (0, 1, 2))(q, k, v)

    variants = {kernel: functools.partial(ours, implementation=kernel) for kernel in kernels}
    arguments = dict.fromkeys(variants, (q, k, v, steps))
    peers = ["cudnn", "xla"] if target_device().platform == "gpu" else ["xla"]
    for peer in peers:
        variants[f"{peer} bf16"] = functools.partial(dense, implementation=peer)
        arguments[f"{peer} bf16"] = tokens_first
    results = {}

    def check(variant, gradients):
        if variant not in kernels:
            return
        for a, b in zip(
            jax.tree.leaves(results.setdefault("first", gradients)), jax.tree.leaves(gradients), strict=True
        ):
            if relative(b.astype(jnp.float32), np.asarray(a, np.float64)) > 0.05:
                raise RuntimeError(f"wrong, its gradients differ from those of {kernels[-1]}")

    row = {"row": "gradient 4-bit", "shape": shape, "mode": "lsq", "bits": (4, 4, 4, 4)}
    return row | common.compare(
        {name: variants[name] for name in reversed(variants)},  # "xla", the plain form, says what is right
        arguments,
        ours=kernels[0],
        peer=f"{peers[0]} bf16",
        repeats=repeats,
        iterations=iterations,
        budget=2.5,
        check=check,
    )


def torch_seconds(shape, repeats):
    """Median seconds of PyTorch's scaled_dot_product_attention in bfloat16; None where PyTorch or its GPU is not there."""
    try:
        import torch

        if not torch.cuda.is_available():
            return None
        batch, heads, queries, keys, d = shape
        sizes = [(batch, heads, queries, d)] + [(batch, heads, keys, d)] * 2
        q, k, v = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in sizes)
        times = []
        for _ in range(3 + min(repeats, 10)):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(20):
                torch.nn.functional.scaled_dot_product_attention(q, k, v)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 20e3)
        return float(np.median(times[3:]))
    except Exception:  # not installed, no kernel for this device, out of memory beside JAX
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few repeats")
    parser.add_argument("--out", type=common.folder_argument, help="folder for the JSON file")
    parser.add_argument("--seconds", type=float, default=600.0, help="no further row begins after them")
    options = parser.parse_args()
    platform = target_device().platform
    kernels = {"gpu": ["pallas_gpu", "xla"], "tpu": ["pallas_tpu", "xla"]}.get(platform, ["xla"])
    rows = QUICK_ROWS if options.quick else CPU_ROWS if platform == "cpu" else ROWS
    repeats, iterations = (5, 2) if options.quick else (20, 2) if platform == "cpu" else (50, 20)
    packages = ("torch", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    save = functools.partial(common.write, "quantized_attention", packages=packages, folder=options.out)
    measured = []
    for name, (shape, contracts, target) in common.within(rows.items(), options.seconds):
        torch_time = torch_seconds(shape, repeats) if platform == "gpu" else None
        for mode, bits in contracts:
            loops = max(2, min(iterations, int(3e12 / math.prod(shape)))) if platform != "cpu" else iterations
            row = measure(name, shape, mode, bits, target, kernels=kernels, repeats=repeats, iterations=loops)
            if torch_time is not None:
                row["torch_bf16_seconds"] = torch_time
            measured.append(row)
            show(row)
            save(measured)
    gradient = {"cpu": (2, 6, 197, 197, 64)}.get(platform, (64, 6, 197, 197, 64))
    gradient = (1, 2, 40, 40, 32) if options.quick else gradient
    row = gradient_row(gradient, kernels=kernels, repeats=repeats, iterations=min(iterations, 10))
    measured.append(row)
    show(row)
    print(save(measured))


def show(row):
    print(f"{row['row']} {row['mode']} bits {'/'.join(map(str, row['bits']))}, target {row.get('target')}")
    for variant, times in row.get("seconds", {}).items():
        error = row.get("error", {}).get(variant)
        speedup = row["seconds"][row["peer"]]["seconds_median"] / times["seconds_median"]
        note = "" if error is None else f", error {error:.1e}"
        print(f"  {variant:20} {times['seconds_median'] * 1e6:10.1f} us, {speedup:5.2f}x {row['peer']}{note}")
    for variant, error in row["failed"].items():
        print(f"  {variant:20} {error}")


if __name__ == "__main__":
    main()
