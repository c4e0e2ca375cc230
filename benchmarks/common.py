"""What every benchmark needs: timing, where it ran, and a JSON file that says so."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"


def device_name() -> str:
    """A folder name for the device, such as `cpu-2-cores` or `nvidia-h200`."""
    device = jax.devices()[0]
    name = f"cpu {len(os.sched_getaffinity(0))} cores" if device.platform == "cpu" else device.device_kind
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str | None:
    """Hash of the checked-out commit, with `-modified` where files differ from it; None outside a repository."""

    def git(*arguments):
        done = subprocess.run(
            ["git", "-C", str(RESULTS.parent), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        head = git("rev-parse", "--verify", "HEAD")
        return head and head + ("-modified" if git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:  # no git
        return None


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of Python, jax, numpy and `packages`; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in ("jax", "jaxlib", "numpy", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def seconds(function: Callable[[], object], *, repeats: int = 10, warmup: int = 2) -> np.ndarray:
    """Wall seconds of each of `repeats` calls; waits for the arrays a call returns, after `warmup` calls."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return np.asarray(times[warmup:])


def summary(times: np.ndarray, *, items: int = 1) -> dict[str, float]:
    """Median and quartiles in seconds, and items per second at the median."""
    low, median, high = np.percentile(times, [25, 50, 75])
    return {
        "seconds_median": float(median),
        "seconds_quartiles": [float(low), float(high)],
        "repeats": len(times),
        "per_second": float(items / median),
    }


def write(
    name: str, measurements: object, *, packages: tuple[str, ...] = (), folder: Path | None = None
) -> Path:
    """Writes `results/<device>/<name>.json`: device, versions, commit and the measurements; returns the path."""
    path = (folder or RESULTS / device_name()) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "benchmark": name,
        "device": jax.devices()[0].device_kind,
        "platform": jax.devices()[0].platform,
        "device_count": jax.device_count(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "versions": versions(*packages),
        "commit": commit(),
        "measurements": measurements,
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path
