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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/small_files.ipynb)
#
# # Pictures and clips as files
#
# A learned codec turns a picture into a few whole numbers, and those into bytes that any machine decodes alike. Here one is
# trained for some minutes on patches of seven photographs, and writes files of a photograph that it never saw; JPEG and WebP
# write theirs beside it. Trained so briefly it is no match for them, and the last plot says by how much.

# %%
import dataclasses
import itertools
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments.methods import edic
from experiments.programs import compression_report as report
from jaxface import data, inference, training
from jaxface.data.sources.patches import bundled_photograph

STEPS, CLIP_STEPS = 600, 150  # the recipes have 1500 and 400
WEIGHTS = (256.0, 64.0, 16.0)  # λ after 1024: the smaller, the fewer bytes
runs = pathlib.Path(tempfile.mkdtemp())
config = dataclasses.replace(edic.Config.photographs(), steps=STEPS, ladder=WEIGHTS, ladder_steps=STEPS // 4)
outcome = training.run(edic.build(config), workdir=runs / "pictures")
{name: round(value, 3) for name, value in outcome.metrics.items()}

# %% [markdown]
# ## A file
#
# Of the four codecs the one whose file of this face comes closest to 0.1 bits per pixel. `jaxface compress encode` does the same
# on the command line. The header says which codec wrote it: no other one decodes it, and neither a cut nor an altered file is
# decoded at all.

# %%
face = bundled_photograph("astronaut")[:384, 64:448]
codecs = [inference.open_codec(runs / "pictures", weight=weight) for weight in (config.weight, *WEIGHTS)]
codec = min(codecs, key=lambda codec: abs(8 * len(codec.encode(face).data) / face[..., 0].size - 0.1))
coded = codec.encode(face)
decoded = codec.decode(coded.data)
print(
    f"λ = {codec.weight:g}: {len(coded.data)} bytes, {8 * len(coded.data) / face[..., 0].size:.3f} bits per pixel"
)
print(f"{8 * len(coded.data) / coded.bits - 1:+.2%} over the entropy of its symbols")

# %% [markdown]
# ## A face at equal bytes
#
# The best that JPEG and WebP make of no more bytes. At so few neither has a setting for the whole size, so that they may halve or
# quarter the picture first and enlarge what is decoded.

# %%
shown = {"original": (face, None), "EDIC": (decoded, len(coded.data))}
for name in ("JPEG", "WEBP"):
    best = (np.inf, np.zeros_like(face), 0)
    for side, quality in itertools.product((384, 192, 96, 48), range(1, 96, 3)):
        encode, decode = report.pillow_codec(name, quality)
        file = encode(np.asarray(Image.fromarray(face).resize((side, side))))
        if len(file) <= len(coded.data):
            picture = np.asarray(Image.fromarray(decode(file)).resize(face.shape[:2]))
            error = np.mean((picture.astype(float) - face) ** 2)
            best = min(best, (error, picture, len(file)), key=lambda one: one[0])
    shown[name] = best[1:]
figure, axes = plt.subplots(1, 4, figsize=(13, 3.8))
for axis, (name, (picture, size)) in zip(axes, shown.items(), strict=True):
    axis.imshow(picture)
    axis.set_axis_off()
    error = np.mean((picture.astype(float) - face) ** 2)
    axis.set_title(name if size is None else f"{name}, {size} bytes, {10 * np.log10(255**2 / error):.1f} dB")
plt.show()

# %% [markdown]
# ## Rate and distortion, by real files
#
# `python -m experiments.programs.compression_report` measures a run on whole pictures and has BD-rates, MS-SSIM and AVIF besides.

# %%
measured = report.curves({"EDIC": str(runs / "pictures")}, [face])
figure, axis = plt.subplots(figsize=(6, 4))
for name, points in measured.items():
    axis.plot(*report.increasing(points, "psnr"), marker="o", label=name)
axis.set_xlim(0, 2)
axis.set_xlabel("bits per pixel")
axis.set_ylabel("PSNR, dB")
axis.legend()
plt.show()

# %% [markdown]
# ## A clip
#
# Every frame but the first is told from the one before: a flow is coded, the frame before is moved along it, and what is left is
# coded as a picture is. Clips are of leaves that move.

# %%
clips = edic.Config.video()
clips = dataclasses.replace(
    clips,
    data=data.MovingLeaves(clips=100, held_out_clips=20),
    steps=CLIP_STEPS,
    prediction=dataclasses.replace(clips.prediction, steps=CLIP_STEPS),
)
outcome = training.run(edic.build(clips), workdir=runs / "clips")
video = inference.open_video_codec(runs / "clips")
frames = list(data.load(clips.data, image_size=32).held_out[0]["frames"])
file = video.encode(frames)
seen = list(video.decode(file))
alone = sum(len(video.intra.encode(frame).data) for frame in frames)
print(f"{len(file)} bytes for {len(frames)} frames, {alone} as pictures")

# %%
figure, axes = plt.subplots(2, len(frames), figsize=(3 * len(frames), 6))
for row, (name, pictures) in enumerate({"frames": frames, "decoded": seen}.items()):
    for axis, picture in zip(axes[row], pictures, strict=True):
        axis.imshow(picture)
        axis.set_axis_off()
        axis.set_title(name)
plt.show()
