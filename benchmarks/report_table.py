"""What `benchmarks.gpu_report` makes of its JSON files: a table with targets, and the defaults of `common.choose`."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import binary_conv, dilated_conv, margin_softmax
from benchmarks.kernel_cases import OPS
from pallas_kernels.binary_conv import api as binary_api
from pallas_kernels.dilated_conv import api as dilated_api
from pallas_kernels.margin_softmax import api as margin_api
from pallas_kernels.quantized_attention import api as attention_api

# Goals for an H100 or H200, against cuDNN's bfloat16 form of the same computation. Where they come from:
# a roofline of 1979 TOP/s int8 and 15.8 POP/s of one bit, at the efficiency of a hand-tuned bfloat16 convolution (62 %).
BINARY_SPEEDUPS = {
    ("r18 3x3 28x28 128-128", 256): {"int8": 1.6, "1 bit": 4.0},
    ("r18 3x3 14x14 256-256", 256): {"int8": 1.6, "1 bit": 4.0},
}
# Of the larger of memory's and the matrix unit's time, for rows where that is long enough to be reached.
DILATED_PERCENT_OF_BOUND, DILATED_LONG_ENOUGH = 70.0, 30e-6
# A default is never slower than the plain form.
MARGIN_SPEEDUP = 1.0
# The training step against PyTorch, compiled, channels-last.
STEP_RATIO = 1.0
# What the demo reaches on two CPU cores, less its interval: 0.976 ± 0.013.
DEMO_ACCURACY = 0.963
# quantized_attention carries its targets in its rows (`benchmarks.quantized_attention.ROWS`).


def text(results: Mapping[str, dict]) -> str:
    """The table: one row per measurement, its result, its target and whether it is met.

    Args:
      results: name -> content of the JSON file; empty where there is none.
    """
    rows = [("measured", "result", "target", "")]
    for name, of in TABLES.items():
        content = results.get(name) or {}
        notes = content.get("report", {})
        for item, note in notes.items():
            if note.get("status") != "done":
                rows.append((item, note.get("status", "no status"), "done", "missing"))
        if content.get("measurements") is None:
            if not notes:
                rows.append((name, "not measured", "", "missing"))
            continue
        try:
            rows.extend(of(content["measurements"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:  # a file of another version
            rows.append((name, f"cannot be read: {type(error).__name__}: {error}", "", "missing"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _row(name: str, value: float | None, unit: str, target: float | None) -> tuple[str, str, str, str]:
    if value is None:
        return name, "not measured", "" if target is None else f"{target:g}{unit}", "missing"
    verdict = "" if target is None else "met" if value >= target else "missed"
    return name, f"{value:.2f}{unit}", "" if target is None else f"{target:g}{unit}", verdict


def _correctness(ops: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for op, entry in ops.items():
        statuses = [case["status"] for case in entry["cases"].values()]
        total = sum(entry["total"].values())
        right, refused = statuses.count("right"), statuses.count("refused")
        result = f"{right} of {total} right" + (f", {refused} refused" if refused else "")
        good = right + refused == total
        yield (
            f"{op}: {entry['implementation']} against the reference",
            result,
            f"{total}",
            "met" if good else "missed",
        )
        for name, case in entry["cases"].items():
            if case["status"] not in ("right", "refused"):
                far = " ".join(f"{case[k]:.1e}" for k in ("distance", "gradient_distance") if k in case)
                yield f"  {name}", f"{case['status']} {far}{case.get('error', '')}"[:150], "right", "missed"


def _binary(measurements) -> Iterator[tuple[str, str, str, str]]:
    for row in measurements["rows"]:
        for kind in ("convolution", "block"):
            targets = BINARY_SPEEDUPS.get((row["layer"], row["batch"]), {}) if kind == "convolution" else {}
            label = f"binary_conv {row['layer']} B={row['batch']} {kind}"
            for variant, ratio in row[kind].get("speedups", {}).items():
                yield _row(f"{label}: {variant}", ratio, "x", targets.get(variant))
            for variant, error in row[kind]["failed"].items():
                yield f"{label}: {variant}", error[:100], "", "missed"
    if "instructions" in measurements:
        yield "binary_conv 1-bit instructions exact", str(measurements["bits_are_exact"]), "", ""


def _dilated(measurements) -> Iterator[tuple[str, str, str, str]]:
    for row in measurements["rows"]:
        shape = "×".join(map(str, row["shape"][:4])) + f"→{row['shape'][4]} d={row['dilation']}"
        label = f"dilated_conv {row['name']} {row['kind']} {row['activation']} {shape}"
        label += " with gradient" if row["gradient"] else ""
        variant = row["ours"]
        yield _row(f"{label}: {variant} over the best other", row.get("speedup_over_best_other"), "x", None)
        if "bound_seconds" in row:
            long = row["bound_seconds"] >= DILATED_LONG_ENOUGH and not row["gradient"]
            target = DILATED_PERCENT_OF_BOUND if long and variant == "pallas" else None
            yield _row(f"{label}: share of the bound", row["percent_of_bound"][variant], " %", target)
        for name, error in row["errors"].items():
            yield f"{label}: {name}", error[:100], "", "missed"


def _attention(measurements) -> Iterator[tuple[str, str, str, str]]:
    for row in measurements:
        label = f"quantized_attention {row['row']} {row['mode']} {'/'.join(map(str, row['bits']))}"
        for variant, ratio in next(iter(row.get("ratio_to", {}).values()), {}).items():
            ours = variant.startswith(("pallas", "xla")) and variant.endswith(("codes", "float"))
            if ours:
                target = row.get("target") if variant == row["ours"] else None
                yield _row(f"{label}: {variant} over {row['peer']}", ratio, "x", target)
        if "ratio_to" not in row and "speedup" in row:
            yield _row(f"{label}: {row['ours']} over {row['peer']}", row["speedup"], "x", None)
        for variant, error in row["failed"].items():
            yield f"{label}: {variant}", error[:100], "", "missed"


def _margin(measurements) -> Iterator[tuple[str, str, str, str]]:
    for row in measurements:
        label = f"margin_softmax {row['head']} B={row['batch']} C={row['classes']}"
        seconds = {name: entry["seconds_median"] for name, entry in row.get("seconds", {}).items()}
        plain = [value for name, value in seconds.items() if name.startswith(("materialized", "torch"))]
        ours = {name: value for name, value in seconds.items() if name.startswith(("xla", "pallas"))}
        fastest = min(ours, key=ours.__getitem__, default=None)
        if fastest and plain:
            yield _row(
                f"{label}: {fastest} over the best plain form",
                min(plain) / ours[fastest],
                "x",
                MARGIN_SPEEDUP,
            )
        for name, error in row["errors"].items():
            yield f"{label}: {name}", error[:100], "", "" if name.startswith("materialized") else "missed"


def _train_step(measurements) -> Iterator[tuple[str, str, str, str]]:
    for row in measurements:
        label = f"training step {row['model']} {row['image_size']}² B={row['batch_size']}"
        for side in ("jaxface", "torch_eager", "torch_compiled"):
            if side in row:
                share = row[side].get("share_of_peak")
                note = "" if share is None else f", {share:.1%} of peak"
                yield f"{label}: {side}", f"{row[side]['per_second']:.0f} images/s{note}", "", ""
            elif f"{side}_failed" in row:
                yield f"{label}: {side}", row[f"{side}_failed"][:100], "", ""
        if "torch_skipped" in row:
            yield f"{label}: torch", f"skipped: {row['torch_skipped']}", "", ""
        else:
            yield _row(f"{label}: jaxface over the faster torch", row.get("ratio"), "x", STEP_RATIO)


def _demo(measurements) -> Iterator[tuple[str, str, str, str]]:
    yield "demo: seconds", f"{measurements['seconds']:.0f} s", "", ""
    accuracy = measurements["metrics"]["verification/accuracy"]
    yield _row("demo: verification accuracy", accuracy, "", DEMO_ACCURACY)


TABLES: dict[str, Callable[[Any], Iterator[tuple[str, str, str, str]]]] = {
    "correctness": _correctness,
    "binary_conv": _binary,
    "dilated_conv": _dilated,
    "quantized_attention": _attention,
    "margin_softmax": _margin,
    "train_step": _train_step,
    "demo": _demo,
}


# --- what a default goes by -------------------------------------------------------------------------------------------


def defaults(results: Mapping[str, dict], device: str, platform: str) -> dict:
    """The table that `pallas_kernels.measured` reads, of what was measured right and timed with the same sources.

    Args:
      results: as `text`.
      device, platform: what it is about.
    """
    checked = results.get("correctness", {}).get("measurements") or {}
    ops = {}
    for op in OPS:
        content, check = results.get(op, {}), checked.get(op)
        note = content.get("report", {}).get(op, {})
        if not check or content.get("measurements") is None or content.get("device") != device:
            continue
        if not check["kernel"] or note.get("kernel") != check["kernel"] or check["device"] != device:
            continue
        kernel = f"pallas_{platform}"
        ops[op] = {
            "kernel": check["kernel"],
            "correct": {kernel: check["correct"]} if check["implementation"] == kernel else {},
            "cases": list(_CASES[op](content["measurements"], kernel)),
        }
    return {"device": device, "platform": platform, "ops": ops}


def _case(facts: dict, seconds: Mapping[str, float | None]) -> dict:
    return {"facts": facts, "seconds": dict(seconds)}


def _medians(row) -> dict[str, float]:
    return {name: entry["seconds_median"] for name, entry in row.get("seconds", {}).items()}


def _shape(dtype, *size) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(size, dtype)


def _binary_cases(measurements, kernel) -> Iterator[dict]:
    for row in measurements["rows"]:
        layers = binary_conv.RESNET18 | binary_conv.RESNET50
        if row["layer"] not in layers:
            continue
        size, c, o, k = layers[row["layer"]]
        words = math.ceil(c / 32)
        x, w = _shape(jnp.uint32, row["batch"], size, size, words), _shape(jnp.uint32, k, k, o, words)
        geometry = binary_api.geometry_of(x, w, c, 1, "SAME", "zero")
        for kind in ("convolution", "block"):
            medians = _medians(row[kind])
            # The kernel picks the 1-bit instruction where that is exact and K is small; not knowing, take the slower.
            routes = [medians[name] for name in ("int8", "1 bit", "pallas_tpu") if name in medians]
            if "xla" in medians and routes:
                yield _case(binary_api.facts(geometry, kind), {"xla": medians["xla"], kernel: max(routes)})


def _dilated_cases(measurements, kernel) -> Iterator[dict]:
    for entry in measurements["rows"]:
        medians = _medians(entry)
        if entry["gradient"] or not {"xla", "pallas"} <= medians.keys():
            continue
        row = dilated_conv.Row(
            entry["name"], entry["kind"], tuple(entry["shape"]), entry["dilation"], entry["activation"]
        )
        n, height, width, channels, outputs = row.shape
        x, options = _shape(jnp.bfloat16, n, height, width, channels), {"dilation": row.dilation}
        filters = [_shape(jnp.float32, *size) for size in row.filters()]
        if row.kind == "ccp":
            op, options = "conv_ccp", {}
            filters = [_shape(jnp.float32, 3, 3, channels, outputs, 2)]
        elif row.kind == "ddc" or (row.kind == "ddp" and row.activation == "identity"):
            op, filters = "depthwise", [_shape(jnp.float32, 3, 3, channels), filters[-1]]
        else:
            op, filters = "cascade", [*filters, *[None] * (3 - len(filters))]
        facts = dilated_api.facts(op, x, *filters, **options)
        yield _case(facts, {"xla": medians["xla"], kernel: medians["pallas"]})


def _attention_cases(measurements, kernel) -> Iterator[dict]:
    for row in measurements:
        medians = _medians(row)
        for codes, ending in ((True, "codes"), (False, "float")):
            if "ratio_to" not in row or f"{kernel} {ending}" not in medians:
                continue
            facts = attention_api.facts(row["mode"], codes, tuple(row["shape"]), jnp.bfloat16)
            # The plain form is left out where it would hold all scores of a long sequence.
            yield _case(facts, {"xla": medians.get(f"xla {ending}"), kernel: medians[f"{kernel} {ending}"]})


def _margin_cases(measurements, kernel) -> Iterator[dict]:
    for row in measurements:
        medians = _medians(row)
        if row["head"] not in margin_softmax.HEADS or "pallas" not in medians:
            continue
        of = functools.partial(margin_api.facts, margin_softmax.HEADS[row["head"]])
        for dtype, plain in ((jnp.float32, "xla"), (jnp.bfloat16, "xla_bf16")):
            if plain in medians:
                # The kernel rounds float32 rows to bfloat16: it takes no longer for those that come so.
                seconds = {"xla": medians[plain], kernel: medians["pallas"]}
                yield _case(of(dtype, row["batch"], row["classes"], row["features"]), seconds)


_CASES = {
    "binary_conv": _binary_cases,
    "dilated_conv": _dilated_cases,
    "quantized_attention": _attention_cases,
    "margin_softmax": _margin_cases,
}
