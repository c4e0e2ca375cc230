"""Images per second of a vision transformer that drops tokens, beside the same network that keeps them all.

    python -m benchmarks.token_pruning [--network sparsevit_small] [--size 224] [--batch 64] [--budget 0.65] [--repeats 10]

Random weights score tokens of random images; each stage's threshold is the quantile of the batch's scores that leaves the paper's
share of the tokens (rho 0.65: 2.97 GMAC for DeiT-S), so images keep different numbers. In turns in one process: the plain `ViT`;
`Compacted`, which packs what is kept (its host's waits are counted); and the same tokens under masks, whose predictions are
compared with the compacted ones. A speed-up above 1 means that pruning is faster.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxface import models
from jaxface.layers.sparsevit import SparseEncoder
from jaxface.models.transformers.sparsevit import (
    Compacted,
    apply_pruned,
    dense_macs,
    dense_network,
    pruned_macs,
)

CHANNELS, CLASSES = 3, 1000


def share_at_budget(network, size: int, budget: float) -> float:
    """r such that stages that keep r, r², r³ of the patch tokens take `budget` of the dense work."""
    shape = (size, size, CHANNELS)
    patches, stages = (size // network.patch) ** 2, len(network.encoder(parent=None).stages)
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        kept = jnp.array([patches * share ** (t + 1) for t in range(stages)])
        above = float(pruned_macs(network, kept, shape)) > budget * dense_macs(network, shape)
        low, high = (low, share) if above else (share, high)
    return low


def photographs(batch: int, size: int) -> np.ndarray:
    """[B, H, W, 3] float32 in [-1, 1]: light that changes smoothly, with noise over a part of each image."""
    rng = np.random.default_rng(1)
    coarse = rng.uniform(-1, 1, (batch, 7, 7, CHANNELS)).astype(np.float32)
    smooth = np.asarray(jax.image.resize(coarse, (batch, size, size, CHANNELS), "cubic"))
    edge = rng.integers(size // 8, size, batch)
    noise = rng.uniform(-1, 1, smooth.shape).astype(np.float32)
    noise *= (np.arange(size)[None, :] < edge[:, None])[:, :, None, None]
    return np.clip(smooth + noise, -1, 1)


def trained_like(network, image) -> dict:
    """Variables whose attention tells tokens apart: linear layers larger than at the start, and a class token."""
    params = jax.jit(lambda x: network.init(jax.random.key(0), x))(image[:1])["params"]
    params = jax.tree.map(lambda x: 2 * x if x.ndim == 2 else x, params)
    params["class_token"] = jax.random.normal(jax.random.key(1), params["class_token"].shape)
    return {"params": params}


def with_thresholds(network, variables, image, share: float):
    """The variables with thresholds that leave shares r, r², … of the tokens of these images."""
    stages = len(network.encoder(parent=None).stages)
    patches = (image.shape[1] // network.patch) ** 2
    counts = tuple(round(patches * share ** (t + 1)) for t in range(stages))
    chosen = network.clone(encoder=partial(network.encoder, select="quantile", keep=counts))
    collected = jax.jit(partial(chosen.apply, mutable=["pruning"]))(variables, image)[1]["pruning"]["encoder"]
    thresholds = collected["thresholds"][0]
    return {"params": {**variables["params"], "encoder": {"thresholds": thresholds}}}


def measure(name: str, *, size: int, batch: int, budget: float, repeats: int) -> dict:
    """Both networks and what tells whether they agree."""
    network = models.create(name, embedding=CLASSES, encoder=partial(SparseEncoder, mode="exact"))
    image = photographs(batch, size)
    share = share_at_budget(network, size, budget)
    variables = with_thresholds(network, trained_like(network, image), image, share)
    plain = {k: v for k, v in variables["params"].items() if k != "encoder"}
    dense = jax.jit(dense_network(network).apply)
    masked = jax.jit(partial(apply_pruned, network))
    compacted, device = Compacted(network, variables), jax.device_put(image)
    wanted, given = masked(variables, device), compacted(device)
    agree = np.asarray(wanted.output).argmax(1) == np.asarray(given.output).argmax(1)
    calls = {
        "dense": lambda: dense({"params": plain}, device),
        "compacted": lambda: compacted(device).output,
    }
    times = common.in_turns(calls, repeats=repeats, warmup=0, budget=float("inf"))
    report = {arm: common.summary(values, items=batch) for arm, values in times.items()}
    ratios = times["dense"] / times["compacted"]
    return {
        "network": name,
        "image_size": size,
        "batch": batch,
        "dense_gmac": dense_macs(network, (size, size, CHANNELS)),
        "gmac": float(given.macs.mean()),
        "kept_mean": np.asarray(given.kept).mean(0).tolist(),
        "kept_range": [np.asarray(given.kept).min(0).tolist(), np.asarray(given.kept).max(0).tolist()],
        "seconds": report,
        "speedup": float(np.median(ratios)),
        "speedup_quartiles": np.percentile(ratios, [25, 75]).tolist(),
        "same_predictions": float(agree.mean()),
        "same_tokens": float((np.asarray(wanted.kept) == np.asarray(given.kept)).mean()),
        "largest_difference": float(
            jnp.abs(wanted.output - given.output).max() / jnp.abs(wanted.output).max()
        ),
    }


def line(row: dict) -> str:
    rate = {arm: seconds["per_second"] for arm, seconds in row["seconds"].items()}
    low, high = row["speedup_quartiles"]
    return (
        f"{row['network']} {row['image_size']}², batch {row['batch']}: dense {rate['dense']:.2f} images/s, "
        f"compacted {rate['compacted']:.2f} at {row['gmac']:.3f} of {row['dense_gmac']:.3f} GMAC, "
        f"x {row['speedup']:.3f} ({low:.3f}-{high:.3f}); {row['same_predictions']:.1%} same predictions as masked, "
        f"outputs apart by {row['largest_difference']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="sparsevit_small", help="a network that drops tokens")
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument("--budget", type=float, default=0.65, help="share of the dense work, in (0, 1]")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each")
    parser.add_argument(
        "--out", type=common.folder_argument, help="folder of the JSON file instead of results/<device>"
    )
    arguments = parser.parse_args()
    row = measure(
        arguments.network,
        size=arguments.size,
        batch=arguments.batch,
        budget=arguments.budget,
        repeats=arguments.repeats,
    )
    print(line(row))
    print(common.write("token_pruning", [row], packages=("flax",), folder=arguments.out))


if __name__ == "__main__":
    main()
