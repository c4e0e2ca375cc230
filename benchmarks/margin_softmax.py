"""Margin softmax: loss and both gradients of a step, ours against the materialized [B, C] matrix, in time and in memory.

python -m benchmarks.margin_softmax            # on whatever device there is
python -m benchmarks.margin_softmax --quick    # small shapes, to see that it runs

"materialized" is XLA's autodiff of the definition with float32 rows at the device's default precision, "materialized_bf16"
the same with the product's operands in bfloat16, "torch" PyTorch's autograd of it under bfloat16 autocast. "xla" and
"xla_bf16" are the chunks of `pallas_kernels.margin_softmax` with float32 and bfloat16 embeddings; on a CPU, where "xla" is the
default, ArcFace saves cosines for its gradient within `SAVED_BYTES`, which the temporary bytes include.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from pallas_kernels import margin_softmax as ms
from pallas_kernels.margin_softmax import reference

try:
    import torch
except ImportError:
    torch = None

# Random rows are nearly orthogonal; with the default inter_angle of 1.2 every push would be 0 and the check see nothing of it.
HEADS = {"sface": ms.SFace(inter_angle=1.5), "arcface": ms.arcface()}


@dataclasses.dataclass(frozen=True)
class Case:
    head: str
    batch: int
    classes: int
    features: int = 512
    timed: bool = True  # else memory only, which needs no run
    rounds: tuple[int, int] = (3, 20)  # to warm up, and timed unless the time for them is up

    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        rows = [jax.ShapeDtypeStruct((n, self.features), jnp.float32) for n in (self.batch, self.classes)]
        return [*rows, jax.ShapeDtypeStruct((self.batch,), jnp.int32)]

    def arrays(self) -> list[jax.Array]:
        keys = jax.random.split(jax.random.key(0), 3)
        labels = jax.random.randint(keys[0], (self.batch,), 0, self.classes)
        prototypes = jax.random.normal(keys[1], (self.classes, self.features))
        embeddings = jax.random.normal(keys[2], (self.batch, self.features)) + 0.5 * prototypes[labels]
        return [embeddings, prototypes, labels]


def cases(platform: str, *, quick: bool) -> list[Case]:
    if quick:
        return [Case(head, 32, 3000, 64, rounds=(3, 3)) for head in HEADS]
    if platform == "cpu":
        timed = [Case(head, 256, size) for size in (10_000, 100_000) for head in HEADS]
        largest = [Case(head, 256, 1_000_000, rounds=(1, 3)) for head in HEADS]  # seconds each
        return [*timed, *largest, Case("sface", 1024, 1_000_000, timed=False)]
    sizes = (10_000, 100_000, 1_000_000)
    return [*(Case("sface", 1024, size) for size in sizes), Case("arcface", 1024, 1_000_000)]


def materialized(head: ms.Head, dtype: jnp.dtype, x, prototypes, labels):
    def loss(x, prototypes):
        if dtype == jnp.float32:
            return jnp.mean(reference.row_losses(x, prototypes, labels, head))
        unit = [a * jax.lax.rsqrt(jnp.sum(a * a, axis=1, keepdims=True)) for a in (x, prototypes)]
        cosines = jnp.dot(
            *(a.astype(dtype) for a in (unit[0], unit[1].T)), preferred_element_type=jnp.float32
        )
        return jnp.mean(reference.losses_of_cosines(cosines, labels, head))

    return jax.value_and_grad(loss, (0, 1))(x, prototypes)


def ours(head: ms.Head, dtype: jnp.dtype, implementation: str, x, prototypes, labels):
    def loss(x, prototypes):
        return ms.margin_softmax(x.astype(dtype), prototypes, labels, head, implementation=implementation)[0]

    return jax.value_and_grad(loss, (0, 1))(x, prototypes)


def variants(head: ms.Head, platform: str) -> dict[str, Callable]:
    functions = {
        "materialized": functools.partial(materialized, head, jnp.float32),
        "xla": functools.partial(ours, head, jnp.float32, "xla"),
    }
    if platform != "cpu":
        functions["materialized_bf16"] = functools.partial(materialized, head, jnp.bfloat16)
        functions["xla_bf16"] = functools.partial(ours, head, jnp.bfloat16, "xla")
        functions["pallas"] = functools.partial(ours, head, jnp.float32, f"pallas_{platform}")
    return functions


def torch_step(head: ms.Head, x, prototypes, labels) -> Callable:
    """The materialized loss in PyTorch, on the same memory."""
    x, prototypes = (torch.from_dlpack(a).detach().requires_grad_() for a in (x, prototypes))
    labels = torch.from_dlpack(labels).long()
    rows = torch.arange(len(labels), device=labels.device)

    def loss():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            cosines = torch.nn.functional.linear(
                torch.nn.functional.normalize(x), torch.nn.functional.normalize(prototypes)
            )
        cosines = cosines.float()
        if isinstance(head, ms.SFace):
            with torch.no_grad():
                angles = torch.acos(cosines.clamp(-1 + 1e-7, 1 - 1e-7))
                weights = head.scale * torch.sigmoid(head.sharpness * (head.inter_angle - angles))
                mine = torch.sigmoid(head.sharpness * (angles[rows, labels] - head.intra_angle))
                weights[rows, labels] = -head.scale * mine
            return (weights * cosines).sum(dim=1).mean()
        target = cosines[rows, labels]
        sine = (1 - target**2).clamp_min(1e-7).sqrt()
        moved = target * np.cos(head.angular_margin) - sine * np.sin(head.angular_margin)
        logits = head.scale * cosines.index_put((rows, labels), moved)
        return torch.nn.functional.cross_entropy(logits, labels)

    def run():
        x.grad = prototypes.grad = None
        value = loss()
        value.backward()
        torch.cuda.synchronize()
        return value.detach(), (x.grad, prototypes.grad)

    return run


@jax.jit
def distance(actual, expected) -> list[jax.Array]:
    """‖a - b‖ / ‖b‖ of the loss and of each gradient."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return [jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel()) for a, b in pairs]


def check(name: str, actual, expected, *, tolerance: float) -> list[float]:
    distances = [float(d) for d in distance(actual, expected)]
    if not max(distances) < tolerance:
        raise RuntimeError(f"wrong, loss and gradients are {distances} off the materialized ones")
    return distances


def measure(case: Case, *, budget: float) -> dict:
    platform = jax.devices()[0].platform
    platform = "gpu" if platform in ("cuda", "rocm") else platform
    head = HEADS[case.head]
    functions = variants(head, platform)
    compiled, errors = common.compiled(
        {name: (jax.jit(f), tuple(case.shapes())) for name, f in functions.items()}
    )
    functions = {name: functions[name] for name in compiled}
    memory = {name: common.memory_of(function) for name, function in compiled.items()}
    result = {**dataclasses.asdict(case), "memory": memory, "errors": errors}
    if case.timed:
        result |= time_all(case, functions, platform, result["errors"], budget=budget)
    held = {name: memory["temporary_bytes"] for name, memory in result["memory"].items()}
    result["memory_ratio"] = {name: held["materialized"] / max(held[name], 1) for name in held}
    return result


def time_all(case, functions, platform, errors, *, budget) -> dict:
    arrays = case.arrays()
    # float32 products of a GPU or TPU are rounded to some ten bits, and a slope of 80 per radian magnifies that.
    tolerance = 1e-3 if platform == "cpu" else 5e-2
    expected, distances = jax.jit(functions["materialized"])(*arrays), {}

    def verify(name, output):
        distances[name] = check(name, output, expected, tolerance=tolerance)

    small = platform != "cpu" and case.batch * case.classes < 50_000_000
    report = common.compare(
        functions,
        tuple(arrays),
        ours="pallas" if "pallas" in functions else "xla",
        peer="materialized",
        warmup=case.rounds[0],
        repeats=case.rounds[1],
        iterations=20 if small else 1,
        budget=budget,
        check=verify,
    )
    errors |= report.pop("failed")
    if torch is not None and platform == "gpu":
        try:
            step = torch_step(HEADS[case.head], *arrays)
            actual = jax.tree.map(jnp.from_dlpack, step())
            distances["torch"] = check("torch", actual, expected, tolerance=tolerance)
            report["seconds"]["torch"] = common.summary(common.seconds(step, repeats=10))
            report["torch_peak_bytes"] = torch.cuda.max_memory_allocated()
        except Exception as error:
            errors["torch"] = common.first_line(error)
        finally:
            torch.cuda.empty_cache()
    base = report["seconds"]["materialized"]["seconds_median"]
    times = {name: entry["seconds_median"] for name, entry in report["seconds"].items()}
    return report | {
        "distance": distances,
        "speedup_over_materialized": {name: base / seconds for name, seconds in times.items()},
    }


def show(result: dict) -> None:
    print(f"{result['head']}  B={result['batch']} C={result['classes']} D={result['features']}")
    for name in {**result["memory"], **result.get("seconds", {}), **result["errors"]}:
        if name in result["errors"]:
            print(f"  {name:18s} {result['errors'][name]}")
            continue
        line = f"  {name:18s}"
        if name in result.get("seconds", {}):
            entry = result["seconds"][name]
            low, high = entry["seconds_quartiles"]
            line += f" {entry['seconds_median'] * 1e3:9.2f} ms ({low * 1e3:.2f}-{high * 1e3:.2f})"
            line += f"  {result['speedup_over_materialized'][name]:5.2f}x"
        if name in result["memory"]:
            line += (
                f"  {result['memory'][name]['temporary_bytes'] / 1e6:9.1f} MB beside arguments and outputs"
            )
            line += f"  1/{result['memory_ratio'][name]:.0f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, few repeats")
    parser.add_argument(
        "--out",
        type=common.folder_argument,
        help="folder for the JSON, instead of benchmarks/results/<device>",
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="no further case begins after them")
    arguments = parser.parse_args()

    platform = jax.devices()[0].platform
    save = functools.partial(common.write, "margin_softmax", packages=("torch",), folder=arguments.out)
    results = []
    for case in common.within(cases(platform, quick=arguments.quick), arguments.seconds):
        # Compiling and checking take the greater part of a limit.
        results.append(measure(case, budget=2.0 if arguments.quick else min(10.0, arguments.seconds / 8)))
        show(results[-1])
        save(results)
    print(save(results))


if __name__ == "__main__":
    main()
