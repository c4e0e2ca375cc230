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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/search_and_transfer.ipynb)
#
# # Cells that are searched, codes that are learned, and what few images are enough for
#
# Three ways to do with less. DCP-NAS looks for the operations of a binary network with a real one's help; a vector-quantized
# autoencoder says an image in sixteen codes; and OTA adapts a network to new classes with three images of each, by way of those
# codes.

# %%
import dataclasses
import tempfile

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import configs
from jaxface import data, training

# %% [markdown]
# ## A cell is searched
#
# Every edge of the supernet's cell mixes all operations by shares that are trained; a real network and a binary one learn in turns,
# and the shares of the binary one follow the tangent of the real one's ([arXiv:2306.15390](https://arxiv.org/abs/2306.15390)). Each
# node keeps its two largest. With `steps=0` the run ends with the cell.

# %%
search = configs.method_module("dcp_nas")
config = dataclasses.replace(
    search.Config(), search_cells=1, search_reductions=(), rounds=2, phase_steps=30, steps=0
)
found = {}


def noted(stages):
    """The stages, whose evaluations and outcomes stay in `found`."""
    outcome = None
    while True:
        try:
            stage = stages.send(outcome)
        except StopIteration:
            return
        outcome = yield stage
        found[stage.name] = (stage, outcome)


training.run(noted(configs.build("dcp_nas", config)), seed=0)
stage, outcome = found["cell"]
print({name: round(value, 3) for name, value in outcome.metrics.items()})
print(stage.evaluate.genotype(outcome.state).to_json())

# %%
folder = pathlib.Path(tempfile.mkdtemp())
for name, draw in stage.evaluate.figures(outcome.state).items():
    if not name.endswith(".json"):
        plt.figure(figsize=(9, 6))
        plt.imshow(plt.imread(draw(folder / f"{name}.png")))
        plt.axis("off")
        plt.show()

# %% [markdown]
# ## A codebook is learned
#
# OTA's upstream data are the digits 0 to 4. A foundation model learns to tell them apart, and a VQ-GAN
# ([arXiv:2012.09841](https://arxiv.org/abs/2012.09841)) to say them in 4 × 4 codes out of 64. Here is what each code looks like where
# all sixteen are that one.

# %%
from experiments.methods.ota import Config, pixels
from jaxface.training.re_representation import decode_codes, re_represented

config = Config(
    generator=dataclasses.replace(Config().generator, steps=400),
    task_optimizer=training.adam(3e-3, schedule="constant"),
)
found.clear()
student = training.run(noted(configs.build("ota", config)), seed=0)
print({name: round(value, 3) for name, value in student.metrics.items()})

generator = found["generator"][1].state.params["generator"]
model = config.generator.model((8, 8, 1))
codebook = generator["quantizer"]["codebook"]
alone = decode_codes(model, generator, jnp.broadcast_to(codebook[:, None, None], (64, 4, 4, 4)), 8, 8)


def show(rows, columns=16):
    """Rows of gray images with titles."""
    figure, every = plt.subplots(len(rows), columns, figsize=(11, 0.85 * len(rows)), squeeze=False)
    for line, (title, images) in zip(every, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=False):
            axes.imshow(np.asarray(image)[..., 0], cmap="gray")
        for axes in line:
            axes.axis("off")
        line[0].set_title(title, loc="left", fontsize="small")
    plt.show()


show({f"codes {16 * i} to {16 * i + 15}": alone[16 * i : 16 * i + 16] for i in range(4)})

# %% [markdown]
# ## Few images go over to another network
#
# The downstream digits are 5 to 9, smeared and noisy, three of each. The generator has never seen one. `R(x)` is what it makes of them;
# fine-tuning goes over `R(x)` to `x`. Then latents of the fifteen images are mixed and moved until the features of what they decode to
# have the statistics of the fifteen, and a small network learns from those.

# %%
few = data.load(config.data).train
said = re_represented(model, generator, few)
made = np.asarray(found["images"][1].state.extra["images"])
show({"x": pixels(few), "R(x)": pixels(said), "guided": made[:16], "more": made[16:32]})

# %%
rows = {
    "foundation model, nearest class mean": found["representation"][1].metrics["probe/original"],
    "after R(x)": found["re_represented"][1].metrics["classification/accuracy"],
    "after R(x), then x": found["originals"][1].metrics["classification/accuracy"],
    "small network": found["student"][1].metrics["classification/accuracy"],
}
plt.figure(figsize=(6, 2.2))
plt.barh(list(rows), list(rows.values()))
plt.gca().invert_yaxis()
plt.xlabel("test accuracy, five classes, three images each")
plt.show()

# %% [markdown]
# One run says little: fifteen images make seeds differ by several points. `python -m experiments.reproduce ota --seeds 10` compares
# every part with its control, and [the page](https://github.com/jaxface/jaxface/blob/main/docs/methods/ota.md) says which of them
# hold. `jaxface.models.names()` lists the networks; `--mode`, `--images` and `--represent-with` are the controls.
