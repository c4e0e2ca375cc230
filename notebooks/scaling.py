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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/scaling.ipynb)
#
# # Scaling: eight devices, sharded classes, a TPU pod without one
#
# The same pure step runs on one device, on a mesh or replicated. Eight fake devices on a CPU show that the numbers are the same, and the
# TPU compiler, which needs no TPU, says what a chip of a pod would hold.

# %%
import json
import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX starts
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from experiments import configs
from experiments.launch import launch
from experiments.methods import sface
from jaxface import data, losses

jax.device_count()

# %% [markdown]
# ## Classes over devices
#
# Prototypes of 4,096 classes, 512 on each device. `partial_fc_loss` needs the cosines with its own shard alone, and sums over the devices;
# loss and gradients are those of one device.

# %%
keys = jax.random.split(jax.random.key(0), 2)
embeddings = jax.random.normal(keys[0], (64, 32))
prototypes = jax.random.normal(keys[1], (4096, 32))
labels = jnp.arange(64) * 64
head = losses.SFace().fused()
mesh = Mesh(np.array(jax.devices()), ("model",))


def loss(embeddings, prototypes, axis_name=None):
    value, _ = losses.partial_fc_loss(embeddings, prototypes, labels, head, axis_name=axis_name)
    return value


sharded = jax.shard_map(
    lambda e, p: loss(e, p, "model"),
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec("model")),
    out_specs=PartitionSpec(),
)
one, eight = (jax.jit(jax.value_and_grad(f, argnums=1))(embeddings, prototypes) for f in (loss, sharded))
print(f"loss {float(one[0]):.4f} and {float(eight[0]):.4f}")
print(
    f"largest difference of the gradients {float(jnp.abs(one[1] - eight[1]).max()):.1e}, of {float(jnp.abs(one[1]).max()):.1e}"
)

# %% [markdown]
# ## A run on eight devices, three ways
#
# The mesh splits the batch over eight devices, or over two and the prototypes over four; `pmap` replicates. One flag each:
# `--parallel`, `--model-shards`.

# %%
config = sface.Config(
    data=data.RenderedFaces(identities=24, per_identity=4, held_out_identities=8, held_out_per_identity=4),
    backbone="mlp_128",
    image_size=16,
    batch_size=32,
    steps=12,
)
WAYS = {
    "mesh 8 x 1": {},
    "mesh 2 x 4": {"model_shards": 4},
    "pmap": {"parallel": "pmap"},
}
work = pathlib.Path(tempfile.mkdtemp())
for name, fields in WAYS.items():
    workdir = work / name.replace(" ", "-")
    run = configs.Run(workdir=str(workdir), quiet=True, **fields)
    launch("sface", config, run)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    values = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    print(f"{name:10} last loss {values[-1][1]:.5f}")
    plt.plot(*zip(*values, strict=True), "o-", label=name, alpha=0.6)
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()

# %% [markdown]
# ## What a chip would hold
#
# The real TPU compiler runs without a TPU (`pip install libtpu`; `make tpu-aot` compiles 10^8 and 10^9 identities for TPU v5p, ten
# minutes). Here a small network for four chips, if the compiler is at hand.

# %%
if importlib.util.find_spec("libtpu") is None:
    print("no libtpu: pip install libtpu, and run this cell again")
else:
    from benchmarks import tpu_aot

    case = tpu_aot.Case("v5e:2x2", identities=10**6, backbone="iresnet18", batch=256)
    result = tpu_aot.compile_case(case)
    print(
        f"{result.rows:,} prototypes and {result.state_bytes / 1e9:.2f} GB of state on a chip; {result.report}"
    )
