"""DeiT and Swin once more, in PyTorch's terms and float64, on state dicts that are drawn here under timm's names."""

import numpy as np
from scipy.special import erf

RNG = np.random.default_rng(5)


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Numbers of a size that lets every one be seen in the outputs; norms scale by about one."""

    def draw(name, shape):
        if "norm" in name and name.endswith("weight"):
            return RNG.uniform(0.6, 1.4, shape)
        spread = np.prod(shape[1:]) ** -0.5 if name.endswith("weight") else 0.4
        return RNG.normal(size=shape) * spread

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


def block_shapes(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    """Two norms, three layers with biases and the perceptron."""
    layers = {
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "mlp.fc1": (4 * dim, dim),
        "mlp.fc2": (dim, 4 * dim),
    }
    shapes = {f"{name}.{layer}.weight": shape for layer, shape in layers.items()}
    shapes |= {f"{name}.{layer}.bias": shape[:1] for layer, shape in layers.items()}
    return shapes | {
        f"{name}.{norm}.{kind}": (dim,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")
    }


def deit_state(*, dim=12, depth=2, patch=8, patches=4, classes=5, distilled=False) -> dict[str, np.ndarray]:
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, patches + 1 + distilled, dim)}
    if distilled:
        shapes["dist_token"] = (1, 1, dim)
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        shapes |= block_shapes(f"blocks.{i}", dim)
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    for head in ["head"] + ["head_dist"] * distilled:
        shapes |= {f"{head}.weight": (classes, dim), f"{head}.bias": (classes,)}
    return drawn(shapes)


def swin_state(*, dim=8, blocks=(2, 1), heads=(2, 4), patch=2, window=4, classes=5) -> dict[str, np.ndarray]:
    """Under the names of timm from 0.9 on."""
    shapes = {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    shapes |= {"patch_embed.norm.weight": (dim,), "patch_embed.norm.bias": (dim,)}
    for stage, count in enumerate(blocks):
        size = dim * 2**stage
        if stage:
            name = f"layers.{stage}.downsample"
            shapes |= {f"{name}.norm.weight": (2 * size,), f"{name}.norm.bias": (2 * size,)}
            shapes |= {f"{name}.reduction.weight": (size, 2 * size)}
        for i in range(count):
            name = f"layers.{stage}.blocks.{i}"
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads[stage])
            shapes |= block_shapes(name, size)
    shapes |= {"norm.weight": (size,), "norm.bias": (size,)}
    return drawn(shapes | {"head.fc.weight": (classes, size), "head.fc.bias": (classes,)})


def first_release(state: dict[str, np.ndarray], *, blocks=(2, 1), window=4) -> dict[str, np.ndarray]:
    """The same Swin under the names of its first release, with its buffers."""
    renamed = {}
    for name, array in state.items():
        name = name.replace("head.fc.", "head.")
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        renamed[name] = array
    for stage, count in enumerate(blocks):
        for i in range(count):
            renamed[f"layers.{stage}.blocks.{i}.attn.relative_position_index"] = position_index(window)
    renamed["layers.0.blocks.1.attn_mask"] = np.zeros((4, window**2, window**2), np.float32)
    return renamed


def position_index(window: int) -> np.ndarray:
    """As Swin's code makes it."""
    coords = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    relative = (coords[:, :, None] - coords[:, None, :]).transpose(1, 2, 0) + window - 1
    relative[:, :, 0] *= 2 * window - 1
    return relative.sum(-1)


class Layers:
    """PyTorch's modules as functions of a state dict, in float64."""

    def __init__(self, state, epsilon):
        self.state = {name: array.astype(np.float64) for name, array in state.items()}
        self.epsilon = epsilon

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + self.epsilon)
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0.0)

    def patches(self, images):
        """NCHW convolution without overlap, flattened: [B, N, D]."""
        weight = self.state["patch_embed.proj.weight"]
        x, p = images.astype(np.float64).transpose(0, 3, 1, 2), weight.shape[-1]
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // p, p, width // p, p)
        x = np.einsum("bcyhxw,dchw->byxd", x, weight) + self.state["patch_embed.proj.bias"]
        return x.reshape(batch, -1, x.shape[-1])

    def attention(self, x, name, heads, bias=0.0):
        batch, count, dim = x.shape
        qkv = (
            self.linear(x, f"{name}.qkv")
            .reshape(batch, count, 3, heads, dim // heads)
            .transpose(2, 0, 3, 1, 4)
        )
        query, key, value = qkv
        scores = query * (dim // heads) ** -0.5 @ key.transpose(0, 1, 3, 2) + bias
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear((weights @ value).transpose(0, 2, 1, 3).reshape(x.shape), f"{name}.proj")

    def perceptron(self, x, name):
        y = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        return x + self.linear(y * (1 + erf(y / np.sqrt(2))) / 2, f"{name}.mlp.fc2")


def deit(state, images, *, heads=2, epsilon=1e-6):
    t = Layers(state, epsilon)
    x = t.patches(images)
    tokens = [t.state[name] for name in ("cls_token", "dist_token") if name in state]
    x = np.concatenate([*(np.repeat(token, len(x), 0) for token in tokens), x], axis=1) + t.state["pos_embed"]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for i in range(depth):
        x = x + t.attention(t.norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn", heads)
        x = t.perceptron(x, f"blocks.{i}")
    x = t.norm(x, "norm")
    if len(tokens) == 1:
        return t.linear(x[:, 0], "head")
    return (t.linear(x[:, 0], "head") + t.linear(x[:, 1], "head_dist")) / 2


def swin(state, images, *, blocks=(2, 1), heads=(2, 4), window=4, epsilon=1e-5):
    """Along Swin's own code: rolled planes, windows, masks by slices, merging by strides."""
    t = Layers(state, epsilon)
    x = t.norm(t.patches(images), "patch_embed.norm")
    side = round(x.shape[1] ** 0.5)

    def partition(x):
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height // window, window, width // window, window, dim)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window * window, dim)

    for stage, count in enumerate(blocks):
        if stage:
            plane = x.reshape(len(x), side, side, -1)
            corners = [plane[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
            side //= 2
            name = f"layers.{stage}.downsample"
            x = np.concatenate(corners, -1).reshape(len(x), side * side, -1)
            x = t.linear(t.norm(x, f"{name}.norm"), f"{name}.reduction")
        for i in range(count):
            name = f"layers.{stage}.blocks.{i}"
            shift = window // 2 if i % 2 and side > window else 0
            table = t.state[f"{name}.attn.relative_position_bias_table"]
            bias = (
                table[position_index(window).reshape(-1)]
                .reshape(window**2, window**2, -1)
                .transpose(2, 0, 1)[None]
            )
            plane = t.norm(x, f"{name}.norm1").reshape(len(x), side, side, -1)
            if shift:
                plane = np.roll(plane, (-shift, -shift), (1, 2))
                regions, number = np.zeros((1, side, side, 1)), 0
                cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
                for rows in cuts:
                    for columns in cuts:
                        regions[:, rows, columns] = number
                        number += 1
                regions = partition(regions)[..., 0]
                mask = np.where(regions[:, None] != regions[:, :, None], -100.0, 0.0)
                bias = bias + np.tile(mask, (len(x), 1, 1))[:, None]
            y = t.attention(partition(plane), f"{name}.attn", heads[stage], bias)
            y = y.reshape(len(x), side // window, side // window, window, window, -1)
            y = y.transpose(0, 1, 3, 2, 4, 5).reshape(plane.shape)
            x = x + np.roll(y, (shift, shift), (1, 2)).reshape(x.shape)
            x = t.perceptron(x, name)
    return t.linear(t.norm(x, "norm").mean(1), "head.fc")
