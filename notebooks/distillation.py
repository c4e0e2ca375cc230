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
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jaxface/jaxface/blob/main/notebooks/distillation.ipynb)
#
# # Distillation, several methods side by side
#
# A wide teacher and a narrow student on scikit-learn's digits, both without the classes 7, 8 and 9, which are kept to verify: are two
# images of one unseen digit? The student learns from labels alone, or besides from the teacher by four losses of the library.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from jaxface import losses, metrics
from jaxface.layers.prototypes import l2_normalize

digits = load_digits()
images = jnp.asarray(digits.data / 8.0 - 1.0, jnp.float32)
labels = jnp.asarray(digits.target)
seen, unseen = labels < 7, labels >= 7
train_images, train_labels = images[seen], labels[seen]
head = losses.CosFace(scale=16.0, margin=0.2)


class Embedding(nn.Module):
    """A perceptron with one hidden layer; `width` is all that teacher and student differ in."""

    width: int
    size: int = 16

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.size)(nn.relu(nn.Dense(self.width)(x)))


# %% [markdown]
# ## One training loop for all
#
# `transfer(student, teacher)` takes un-normalized embeddings and gives one value per example; its mean is added to the loss of the labels.


# %%
def train(key, module, transfer=None, teacher=None, steps=250, batch=64):
    """Parameters of `module`, trained on the seen digits."""
    init_key, prototype_key, order_key = jax.random.split(key, 3)
    params = {
        "network": module.init(init_key, train_images[:1]),
        "prototypes": 0.1 * jax.random.normal(prototype_key, (7, module.size)),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))

    def objective(params, rows):
        embeddings = module.apply(params["network"], train_images[rows])
        cosines = l2_normalize(embeddings) @ l2_normalize(params["prototypes"]).T
        loss = head.loss(cosines, train_labels[rows]).mean()
        if transfer is not None:
            loss += transfer(embeddings, teacher[rows]).mean()
        return loss

    def step(state, key):
        params, moments = state
        rows = jax.random.randint(key, (batch,), 0, len(train_images))
        updates, moments = optimizer.update(jax.grad(objective)(params, rows), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(order_key, steps))
    return params


wide, narrow = Embedding(256), Embedding(6)
teacher_params = jax.jit(lambda key: train(key, wide))(jax.random.key(0))
teacher = wide.apply(teacher_params["network"], train_images)


def relations(student, teacher):
    """The differences of each example's cosines with the others of the batch: what CoupleFace compares, without its mining."""
    cosines = [l2_normalize(x) @ l2_normalize(x).T for x in (student, teacher)]
    return losses.relation_aware_loss(*cosines)


METHODS = {
    "labels alone": None,
    "mimic": lambda s, t: 4.0 * losses.mimic_loss(s, t, unit=True),
    "mimic + CCKD": lambda s, t: (
        4.0 * losses.mimic_loss(s, t, unit=True) + 10.0 * losses.correlation_congruence_loss(s, t)
    ),
    "mimic + relations": lambda s, t: 4.0 * losses.mimic_loss(s, t, unit=True) + 4.0 * relations(s, t),
    "soft targets": lambda s, t: losses.soft_target_loss(
        16.0 * l2_normalize(s) @ l2_normalize(s).T,
        16.0 * l2_normalize(t) @ l2_normalize(t).T,
        temperature=4.0,
    ),
}

# %% [markdown]
# ## Five seeds each, all seeds of a method in one compiled program
#
# The area under the ROC curve over all pairs of images of digits that neither network has seen.


# %%
def unseen_auc(module, network):
    embeddings = np.asarray(module.apply(network, images[unseen]))
    return metrics.verify(embeddings, np.asarray(labels[unseen]), pairs="all")["verification/auc"]


seeds = jax.random.split(jax.random.key(1), 5)
scores = {}
for name, transfer in METHODS.items():
    params = jax.jit(jax.vmap(lambda key, t=transfer: train(key, narrow, t, teacher)))(seeds)
    scores[name] = [
        unseen_auc(narrow, jax.tree.map(lambda x, i=i: x[i], params["network"])) for i in range(5)
    ]
    print(f"{name:18} {np.mean(scores[name]):.3f} ± {np.std(scores[name], ddof=1):.3f}")
print(f"{'the teacher':18} {unseen_auc(wide, teacher_params['network']):.3f}")

# %%
for k, (name, values) in enumerate(scores.items()):
    plt.scatter([k] * 5, values, alpha=0.5)
    plt.plot([k - 0.2, k + 0.2], [np.mean(values)] * 2, color="black")
plt.axhline(unseen_auc(wide, teacher_params["network"]), linestyle=":", color="gray", label="teacher")
plt.xticks(range(len(scores)), scores, rotation=20)
plt.ylabel("AUC on unseen digits")
plt.legend()
plt.show()

# %% [markdown]
# Weights of the terms were taken as they are, not tuned: this shows how the losses are called, not which is best. For that, with tuned
# baselines and intervals: `python -m experiments.reproduce cckd`, `coupleface`, `rco`.
