"""One training step of a face network: jaxface against the same network in PyTorch, on the same device.

    python -m benchmarks.train_step [--models iresnet18 mobilefacenet] [--batch-size 128] [--image-size 112] [--compile]

A step is forward, backward and SGD with momentum on random images: bfloat16 compute with float32 parameters on a GPU (torch:
autocast, channels-last), float32 on a CPU. Without torch only our side is timed; with `--compile` torch is timed as it is
and under `torch.compile`, and the better one counts. A ratio above 1 means that ours is faster. The share of the peak counts
three forward passes of multiply-accumulates per step. Needs jax, flax and optax alone.
"""

import argparse
import os
import re
from collections.abc import Callable
from functools import partial

# Two frameworks share the device's memory, so neither may take it all at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common
from jaxface import models

try:
    import torch
    from torch import nn
except ImportError:
    torch = None

EMBEDDING = {"iresnet_pico": 128, "iresnet18": 512, "iresnet50": 512, "mobilefacenet": 128}
DEFAULT = ("iresnet18", "iresnet50", "mobilefacenet")
# Blocks and channels of each stage, stride of the stem.
IRESNETS = {
    "iresnet_pico": ((1, 1, 1), (16, 32, 64), 2),
    "iresnet18": ((2, 2, 2, 2), (64, 128, 256, 512), 1),
    "iresnet50": ((3, 4, 14, 3), (64, 128, 256, 512), 1),
}
LEARNING_RATE, MOMENTUM = 0.01, 0.9
# Dense bfloat16 operations per second of the SXM parts, NVIDIA's data sheets of the H100 and the H200.
PEAK_FLOPS = {r"\b(H100|H200)\b(?!.*PCIe)(?!.*NVL)": 989e12}


def jax_step(name: str, images: np.ndarray, targets: np.ndarray) -> tuple[Callable, int]:
    """A function that makes one step and returns arrays to wait for; the number of parameters."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    model = models.create(name, embedding=targets.shape[1], dtype=dtype)
    images, targets = jnp.asarray(images), jnp.asarray(targets)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)

    @jax.jit
    def start():
        variables = model.init(jax.random.key(0), images[:1], train=False)
        return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])

    @partial(jax.jit, donate_argnums=0)
    def step(state, images, targets):
        params, statistics, momentum = state

        def loss(params):
            variables = {"params": params, "batch_stats": statistics}
            embeddings, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(embeddings - targets)), updated["batch_stats"]

        gradients, updated = jax.grad(loss, has_aux=True)(params)
        updates, momentum = optimizer.update(gradients, momentum, params)
        return optax.apply_updates(params, updates), updated, momentum

    state = start()
    count = models.parameter_count(state[0])

    def run():
        nonlocal state
        state = step(state, images, targets)
        return state

    return run, count


if torch is not None:

    class TorchBlock(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.branch = nn.Sequential(
                nn.BatchNorm2d(inputs),
                nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.PReLU(outputs),
                nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            same = stride == 1 and inputs == outputs
            shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
            self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

        def forward(self, x):
            return self.branch(x) + self.shortcut(x)

    class TorchBottleneck(nn.Module):
        def __init__(self, inputs, outputs, hidden, stride):
            super().__init__()
            self.branch = nn.Sequential(
                *torch_conv(inputs, hidden, 1),
                *torch_conv(hidden, hidden, 3, stride, 1, groups=hidden),
                *torch_conv(hidden, outputs, 1, linear=True),
            )
            self.residual = stride == 1

        def forward(self, x):
            return x + self.branch(x) if self.residual else self.branch(x)

    class TorchNet(nn.Module):
        """A trunk under autocast, then flatten, Linear and BatchNorm1d in float32, as ours."""

        def __init__(self, trunk, features, embedding, *, fixed_scale):
            super().__init__()
            self.trunk = trunk
            self.dense = nn.Linear(features, embedding)
            self.norm = nn.BatchNorm1d(embedding)
            self.norm.weight.requires_grad_(not fixed_scale)

        def forward(self, x):
            x = self.trunk(x).flatten(1)
            with torch.autocast(x.device.type, enabled=False):
                return self.norm(self.dense(x.float()))

    def torch_conv(inputs, outputs, kernel, stride=1, padding=0, *, groups=1, linear=False):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs), *([] if linear else [nn.PReLU(outputs)])]

    def torch_iresnet(units, channels, stem_stride, size, embedding):
        trunk, inputs = torch_conv(3, channels[0], 3, stem_stride, 1), channels[0]
        size = -(-size // stem_stride)
        for outputs, count in zip(channels, units, strict=True):
            for i in range(count):
                trunk.append(TorchBlock(inputs, outputs, 2 if i == 0 else 1))
                inputs = outputs
            size = (size + 1) // 2
        trunk.append(nn.BatchNorm2d(inputs))
        return TorchNet(nn.Sequential(*trunk), inputs * size * size, embedding, fixed_scale=True)

    def torch_mobilefacenet(size, embedding):
        trunk = [*torch_conv(3, 64, 3, 2, 1), *torch_conv(64, 64, 3, 1, 1, groups=64)]
        size, inputs = (size + 1) // 2, 64
        for outputs, first, rest, count in ((64, 128, 128, 4), (128, 256, 256, 6), (128, 512, 256, 2)):
            trunk.append(TorchBottleneck(inputs, outputs, first, 2))
            trunk += [TorchBottleneck(outputs, outputs, rest, 1) for _ in range(count)]
            size, inputs = (size + 1) // 2, outputs
        trunk += [*torch_conv(inputs, 512, 1), *torch_conv(512, 512, size, groups=512, linear=True)]
        return TorchNet(nn.Sequential(*trunk), 512, embedding, fixed_scale=False)


def torch_step(name: str, images: np.ndarray, targets: np.ndarray, *, compiled: bool) -> tuple[Callable, int]:
    """The same as `jax_step` in PyTorch; every call waits for the device itself."""
    on_gpu = jax.default_backend() == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = True  # XLA picks its convolution algorithms by timing too
    size, embedding = images.shape[1], targets.shape[1]
    if name == "mobilefacenet":
        model = torch_mobilefacenet(size, embedding)
    else:
        model = torch_iresnet(*IRESNETS[name], size, embedding)
    model = model.to(device, memory_format=torch.channels_last).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM)
    # NHWC in memory, which torch describes as a permuted NCHW tensor: channels-last without a copy.
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    targets = torch.from_numpy(targets).to(device)
    forward = torch.compile(model) if compiled else model

    def run():
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=on_gpu):
            embeddings = forward(images)
        optimizer.zero_grad(set_to_none=True)
        (embeddings - targets).square().mean().backward()
        optimizer.step()
        if on_gpu:
            torch.cuda.synchronize()

    return run, sum(p.numel() for p in trained)


def measure(name: str, arguments: argparse.Namespace, save: Callable[[dict], object]) -> dict:
    """One network's row; `save` is called with what is known of it so far."""
    rng = np.random.default_rng(0)
    side, batch = arguments.image_size, arguments.batch_size
    images = rng.uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)
    targets = rng.normal(size=(batch, EMBEDDING[name])).astype(np.float32)

    run, count = jax_step(name, images, targets)
    times = common.seconds(run, repeats=arguments.repeats, warmup=3)
    # Backward costs twice as much as forward: by the inputs and by the weights.
    flops = (
        3
        * 2
        * batch
        * models.multiply_accumulates(models.create(name, embedding=EMBEDDING[name]), (side, side, 3))
    )
    result = {
        "model": name,
        "batch_size": batch,
        "image_size": side,
        "parameters": count,
        "flops_per_step": flops,
    }
    result["jaxface"] = common.summary(times, items=batch) | share_of_peak(flops, times)
    save(result)
    if torch is None:
        return result | {"torch_skipped": "torch is not installed"}
    del run
    for compiled in (False, True) if arguments.compile else (False,):
        way = "torch_compiled" if compiled else "torch_eager"
        try:
            run, torch_count = torch_step(name, images, targets, compiled=compiled)
            if torch_count != count:
                raise AssertionError(f"{name}: the torch twin has {torch_count} parameters, ours {count}")
            times = common.seconds(run, repeats=arguments.repeats, warmup=3)
        except AssertionError:
            raise
        except Exception as error:  # torch.compile needs a compiler that not every machine has
            result[f"{way}_failed"] = common.first_line(error)
            continue
        result[way] = common.summary(times, items=batch) | share_of_peak(flops, times)
        timed = [
            result[w] | {"compiled": w == "torch_compiled"}
            for w in ("torch_eager", "torch_compiled")
            if w in result
        ]
        result["torch"] = min(timed, key=lambda entry: entry["seconds_median"])
        result["ratio"] = result["torch"]["seconds_median"] / result["jaxface"]["seconds_median"]
        save(result)
    return result


def share_of_peak(flops: int, times: np.ndarray) -> dict[str, float]:
    """The part of the device's dense bfloat16 rate that the step's products use; empty where that rate is not known."""
    kind = jax.devices()[0].device_kind
    peaks = [peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, kind)]
    return {"share_of_peak": flops / float(np.median(times)) / peaks[0]} if peaks else {}


def line(result: dict) -> str:
    def side(name):
        low, high = result[name]["seconds_quartiles"]
        share = f", {result[name]['share_of_peak']:.0%} of peak" if "share_of_peak" in result[name] else ""
        return f"{name} {result[name]['per_second']:.0f} images/s (quartiles {low * 1e3:.1f}-{high * 1e3:.1f} ms{share})"

    peer = (
        f", {side('torch')}, ratio {result['ratio']:.2f}"
        if "torch" in result
        else f"; {result.get('torch_skipped', 'torch failed')}"
    )
    return f"{result['model']}: {side('jaxface')}{peer}"


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(DEFAULT), choices=list(EMBEDDING))
    parser.add_argument("--batch-size", type=int, default=8 if on_cpu else 128)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=5 if on_cpu else 30)
    parser.add_argument("--compile", action="store_true", help="torch.compile the torch side")
    parser.add_argument(
        "--out",
        type=common.folder_argument,
        help="folder for the JSON, instead of benchmarks/results/<device>",
    )
    arguments = parser.parse_args()

    packages, results = ("flax", "optax", "torch"), []

    def save(*unfinished):
        return common.write("train_step", [*results, *unfinished], packages=packages, folder=arguments.out)

    for name in arguments.models:
        results.append(measure(name, arguments, save))
        print(line(results[-1]), flush=True)
    print(save())


if __name__ == "__main__":
    main()
