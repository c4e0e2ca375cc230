"""A packed binary ResNet-18 against the same network in float32 under XLA: python -m benchmarks.binary_network [--quick].

Batch 1, 224 x 224, all cores, random weights and images, statistics of batch normalization from the images themselves. The peer
is the training form in float32 with its batch normalization as it stands; a real ResNet-18 of the same width is timed beside
them. All take their weights as arguments and are timed in turns, and the outputs of the packed form are checked. `--layers` tells
how long each part of the packed form takes on its own.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxface import models
from jaxface.models.binary import to_packed
from jaxface.models.binary.packed import PackedNetwork
from pallas_kernels.binary_conv import xla


def trained(model, images):
    """Variables of a network whose statistics of batch normalization are those of the images."""
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images[:1])
    stats = variables["batch_stats"]
    forward = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    updated = forward(variables, images)[1]["batch_stats"]
    # After a step the averages are 0.9 of what they were and 0.1 of the batch.
    batch = jax.tree.map(lambda old, new: (new - 0.9 * old) / 0.1, stats, updated)
    return {"params": variables["params"], "batch_stats": batch}


def network(size: int, name: str, *, repeats: int, budget: float) -> dict:
    """Seconds of all forms of a network, checked."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(-1, 1, (2, size, size, 3)), jnp.float32)
    model, real = models.create(name, embedding=1000), models.create("resnet18", embedding=1000)
    variables, real_variables = trained(model, images), trained(real, images)
    forms = {
        f"packed, {jnp.dtype(d).name}": to_packed(model, variables, dtype=d)
        for d in (jnp.float32, jnp.bfloat16)
    }

    def run_packed(packed: PackedNetwork, image):
        return packed(image)

    variants = dict.fromkeys(forms, run_packed)
    variants["float32 network"] = lambda v, image: model.apply(v, image, train=False)
    variants["float32 ResNet-18"] = lambda v, image: real.apply(v, image, train=False)
    image = images[:1]
    arguments = {form: (packed, image) for form, packed in forms.items()}
    arguments |= {"float32 network": (variables, image), "float32 ResNet-18": (real_variables, image)}
    wanted = jax.jit(variants["float32 network"])(variables, image)
    got = jax.jit(run_packed)(forms["packed, float32"], image)
    error = float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max())
    if error > 1e-4 or int(got.argmax()) != int(wanted.argmax()):
        raise RuntimeError(f"packed outputs differ by {error:.1e} of the largest")
    calls = {form: functools.partial(jax.jit(call), *arguments[form]) for form, call in variants.items()}
    times = common.in_turns(calls, repeats=repeats, budget=budget)
    report = {
        form: common.summary(values) | {"seconds_least": float(values.min())}
        for form, values in times.items()
    }
    ours, peer = report["packed, float32"], report["float32 network"]
    return {
        "network": name,
        "size": size,
        "relative_error": error,
        "seconds": report,
        # Of least times too: whatever else the machine does slows the longer call more.
        "speedup": peer["seconds_median"] / ours["seconds_median"],
        "speedup_of_least": peer["seconds_least"] / ours["seconds_least"],
    }


def layers(size: int, name: str, *, repeats: int, budget: float) -> dict:
    """Seconds of the packed form's stem and of each unit, on what the network itself gives them."""
    model = models.create(name, embedding=1000)
    images = jax.random.uniform(jax.random.key(0), (2, size, size, 3), minval=-1)
    packed = to_packed(model, trained(model, images))
    stem = jax.jit(lambda packed, image: packed.entrance(image))
    x, bits = stem(packed, images[:1])
    calls = {"stem": functools.partial(stem, packed, images[:1])}
    unit = jax.jit(lambda unit, x, bits: unit(x, bits))
    for (label, *_), each in zip(model.units(), packed.units, strict=True):
        calls[label] = functools.partial(unit, each, x, bits)
        x, bits = unit(each, x, bits)
    times = common.in_turns(calls, repeats=repeats, budget=budget)
    return {label: common.summary(values) for label, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny network; written with --out alone")
    parser.add_argument(
        "--layers", action="store_true", help="each part of the packed form on its own, not written"
    )
    parser.add_argument("--out", type=common.folder_argument, help="folder of the JSON file")
    arguments = parser.parse_args()
    options = {"repeats": 5, "budget": 5.0} if arguments.quick else {"repeats": 60, "budget": 40.0}
    size, name = (32, "binary_resnet_pico") if arguments.quick else (224, "binary_resnet18")
    if arguments.layers:
        for label, times in layers(size, name, **options).items():
            print(f"{label:<16} {1e3 * times['seconds_median']:7.2f} ms")
        return
    row = network(size, name, **options)
    for form, times in row["seconds"].items():
        print(
            f"{form:<18} {1e3 * times['seconds_median']:8.2f} ms, least {1e3 * times['seconds_least']:8.2f} ms"
        )
    print(
        f"packed, float32: {row['speedup']:.2f} x as fast as the same network in float32, "
        f"{row['speedup_of_least']:.2f} x by the least times"
    )
    if arguments.out or not arguments.quick:
        print(
            common.write(
                "binary_network",
                {"method": xla.method(), "rows": [row]},
                packages=("flax",),
                folder=arguments.out,
            )
        )


if __name__ == "__main__":
    main()
