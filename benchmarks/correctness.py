"""Every kernel and its gradient on this device against the reference: python -m benchmarks.correctness binary_conv [--quick].

`--processes N` deals the cases to N processes that share the device: what takes the time is compiling.

The cases are those of `benchmarks.kernel_cases`. Each is written down before it begins and when it ends, so that a device that
hangs or dies loses one case: the next call counts that one as failed and goes on behind it. After an error of the device
itself the process ends with status 3, because nothing else can be trusted to run in it.
"""

import argparse
import faulthandler
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks import common, kernel_cases
from pallas_kernels import common as kernels
from pallas_kernels import measured

RESTART = 3  # exit status
LONGEST = 30.0  # seconds that one case may take, its compilations included


def check(cases: list[kernel_cases.Case], implementation: str, record: dict, save, *, seconds: float) -> bool:
    """Runs the cases that `record` does not have yet; whether the process is still to be trusted.

    Args:
      record: case's name -> what came out: "status" "right", "wrong", "refused" (a shape that the kernel does not take),
        "failed" or "begun"; distances; "error", one line.
      save: called after every change of `record`.
      seconds: no further case begins after them.
    """
    for entry in record.values():
        if entry["status"] == "begun":
            entry |= {"status": "failed", "error": "the process ended while this case ran"}
            save()
    started = time.perf_counter()
    for case in cases:
        name = f"{case.operation} {case.name}"
        if name in record:
            continue
        if time.perf_counter() - started > seconds:
            break
        entry = record[name] = {"operation": case.operation, "status": "begun"}
        save()
        began = time.perf_counter()
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            outcome = kernel_cases.compare(case, implementation)
            entry |= outcome | {"status": "right" if outcome.pop("right") else "wrong"}
            entry.pop("right", None)
        except kernels.KernelError as error:
            entry |= {"status": "refused", "error": common.first_line(error)}
        except Exception as error:  # what the compiler or the device makes of one case must not stop the rest
            entry |= {"status": "failed", "error": common.first_line(error)}
        finally:
            faulthandler.cancel_dump_traceback_later()
        entry["seconds"] = round(time.perf_counter() - began, 2)
        save()
        show(name, entry)
        if entry["status"] == "failed" and "JaxRuntimeError" in entry["error"]:
            return False
    return True


def in_parts(
    arguments: list[str], folder: Path, count: int, take: Callable[[Path], None], *, seconds: float
) -> bool:
    """Runs `count` processes, each with its part of the cases, and takes what they write down as they go.

    A process that a case has ended begins again behind that case, as long as it gets anywhere.

    Args:
      arguments: of this module, without `--out`, `--part` and `--seconds`.
      folder: one folder per process is made in it.
      count: processes.
      take: called with the JSON file of a process, again and again, the last time when the process has ended.
      seconds: as in `check`.

    Returns:
      Whether all of them came to their end.
    """
    end = time.monotonic() + seconds
    files = [folder / str(part) / "correctness.json" for part in range(count)]

    def start(part):
        command = [sys.executable, "-m", "benchmarks.correctness", *arguments]
        command += ["--out", str(files[part].parent), "--part", str(part), str(count)]
        return subprocess.Popen([*command, "--seconds", f"{max(end - time.monotonic(), 1.0):.0f}"])

    def size(part):
        return files[part].stat().st_size if files[part].exists() else 0

    running, sizes, whole = {part: start(part) for part in range(count)}, [0] * count, True
    while running:
        time.sleep(0.2)
        for part, process in list(running.items()):
            code = process.poll()
            if files[part].exists():
                take(files[part])
            if code is None:
                continue
            del running[part]
            if code and size(part) != sizes[part] and time.monotonic() < end:
                sizes[part] = size(part)
                running[part] = start(part)
            whole = whole and (code == 0 or part in running)
    return whole


def correct_operations(record: dict, total: dict[str, int]) -> list[str]:
    """Operations of which every case ran and was right; refused ones say nothing, but one at least must be right."""
    correct = []
    for operation, count in total.items():
        statuses = [entry["status"] for entry in record.values() if entry["operation"] == operation]
        if len(statuses) == count and set(statuses) <= {"right", "refused"} and "right" in statuses:
            correct.append(operation)
    return correct


def show(name: str, entry: dict) -> None:
    distances = [f"{entry[key]:.1e}" for key in ("distance", "gradient_distance") if key in entry]
    print(f"{entry['status']:8} {name} {' '.join(distances)} {entry.get('error', '')}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op", choices=kernel_cases.OPS)
    parser.add_argument("--quick", action="store_true", help="the smallest cases alone, as on a CPU")
    parser.add_argument(
        "--out",
        type=common.folder_argument,
        help="folder of the JSON file (default: benchmarks/results/<device>)",
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="no further case begins after them")
    parser.add_argument("--processes", type=int, default=1, help="that share the cases")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help=argparse.SUPPRESS
    )
    given = parser.parse_args()
    if given.processes < 1:
        parser.error("--processes: needs at least 1")

    device = kernels.target_device()
    implementation = kernel_cases.kernel_of_this_device()
    tiny = given.quick or device.platform == "cpu"
    cases = kernel_cases.cases(given.op, tiny=tiny)
    platform = "gpu" if device.platform == "cpu" else device.platform
    identity = {
        "kernel": measured.kernel_version(given.op, platform),
        "cases_version": common.digest("benchmarks/kernel_cases.py"),
        "implementation": implementation,
        "device": device.kind,
    }
    folder = given.out or common.RESULTS / common.device_name()
    path = folder / "correctness.json"
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ops = written.get("measurements") or {}
    before = ops.get(given.op, {})
    same = all(before.get(key) == value for key, value in identity.items())
    record = before["cases"] if same else {}
    total = {}
    for case in cases:
        total[case.operation] = total.get(case.operation, 0) + 1

    def save():
        correct = correct_operations(record, total)
        ops[given.op] = identity | {"total": total, "correct": correct, "cases": record}
        common.write("correctness", ops, folder=folder, report=written.get("report"), clock=False)

    part, parts = given.part
    if given.processes > 1:
        quick = ["--quick"] if given.quick else []

        def take(file):
            entries = json.loads(file.read_text(encoding="utf-8"))["measurements"][given.op]["cases"]
            if any(record.get(name) != entry for name, entry in entries.items()):
                record.update(entries)
                save()

        with tempfile.TemporaryDirectory() as scratch:
            # They pass over what has been checked already.
            for number in range(given.processes if record else 0):
                common.write("correctness", ops, folder=Path(scratch) / str(number), clock=False)
            trusted = in_parts(
                [given.op, *quick], Path(scratch), given.processes, take, seconds=given.seconds
            )
    else:
        trusted = check(cases[part::parts], implementation, record, save, seconds=given.seconds)
    save()
    print(path)
    sys.stdout.flush()
    if not trusted:
        sys.exit(RESTART)


if __name__ == "__main__":
    jax.config.update("jax_traceback_filtering", "off")
    main()
