"""What has been measured on which device: one JSON file per device beside this one, which `common.choose` reads.

`make gpu-report` writes a file from what it has measured:

    {"device": "NVIDIA H200", "platform": "gpu",
     "ops": {"dilated_conv": {"kernel": version of its sources, see `kernel_version`,
                              "correct": {"pallas_gpu": ["cascade", "conv_ccp"]},
                              "cases": [{"facts": {"operation": "cascade", "pixels": 204800, …},
                                         "seconds": {"xla": 1e-4, "pallas_gpu": 3e-5}}, …]}}}

"correct" lists, for each kernel, the operations of which every case gave the reference's values and gradients on this device.
`null` for seconds stands for an implementation that was left out because it could not be held or run.
"""

import functools
import hashlib
import io
import json
import math
import re
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

REACH = 4.0
"""A measurement speaks for shapes of which every number is within this factor of its own."""

_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)


def file_name(kind: str) -> str:
    """`nvidia-h200.json` for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") + ".json"


def fastest(op: str, kind: str, platform: str, facts: Mapping[str, Any]) -> str | None:
    """The implementation that was measured as fastest at the shapes nearest to these.

    Compared are the cases whose words and flags equal those of `facts` and whose numbers are all within the factor `REACH`; the
    nearest has the smallest Σ |log₂ ratio|. Of its implementations those count that are "xla", or kernels which were measured
    correct for this operation, and whose sources have not changed since (a kernel that changed is not a default before it
    is measured again).

    Args:
      op: folder of `pallas_kernels`.
      kind: name of the device, such as "NVIDIA H200"; another kind's measurements say nothing.
      platform: "gpu" or "tpu".
      facts: static facts of the call: "operation", words, flags, and positive numbers.

    Returns:
      "xla", "pallas_gpu" or "pallas_tpu"; None where nothing that counts was measured.
    """
    measured = load(kind).get("ops", {}).get(op)
    if not measured or not measured.get("kernel") or measured["kernel"] != kernel_version(op, platform):
        return None
    near = [
        (distance, case)
        for case in measured["cases"]
        if (distance := _distance(case["facts"], facts)) is not None
    ]
    if not near:
        return None
    seconds = min(near, key=lambda pair: pair[0])[1]["seconds"]
    correct = measured.get("correct", {})
    timed = {
        name: value
        for name, value in seconds.items()
        if value is not None and (name == "xla" or facts.get("operation") in correct.get(name, ()))
    }
    return min(timed, key=timed.__getitem__, default=None)


@functools.cache
def load(kind: str) -> Mapping[str, Any]:
    """The table of a kind of device, read once; empty where there is none that can be read."""
    try:
        table = json.loads((FOLDER / file_name(kind)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) and table.get("device") == kind else {}


@functools.cache
def kernel_version(op: str, platform: str) -> str | None:
    """A digest of the sources of an op, without comments, docstrings and the other platform's kernels.

    It covers the plain form too: a measurement compares the two. None where the sources are not there to be read.
    """
    other = "tpu" if platform == "gpu" else "gpu"
    digest = hashlib.sha256()
    try:
        for path in sorted((FOLDER.parent / op).glob("*.py")):
            if not path.name.startswith(other):
                digest.update(f"{path.name}\n{_code(path.read_text(encoding='utf-8'))}\n".encode())
    except (OSError, SyntaxError, tokenize.TokenError):
        return None
    return digest.hexdigest()[:16]


def _code(text: str) -> str:
    """The tokens of a module but its comments, docstrings and the layout of its lines."""
    kept, begins = [], True  # begins: a statement
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in _LAYOUT]
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        alone = begins and token.type == tokenize.STRING and following is not None
        if not (alone and following.type == tokenize.NEWLINE):
            structure = token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE)
            kept.append(tokenize.tok_name[token.type] if structure else token.string)
        begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return " ".join(kept)


def _distance(case: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    """Σ |log₂ ratio| of the numbers; None where a word or flag differs or a number is out of reach."""
    if case.keys() != facts.keys():
        return None
    total = 0.0
    for name, value in facts.items():
        if isinstance(value, (str, bool)) or value is None or isinstance(case[name], (str, bool)):
            if case[name] != value:
                return None
            continue
        octaves = abs(math.log2(case[name] / value))
        if octaves > math.log2(REACH):
            return None
        total += octaves
    return total
