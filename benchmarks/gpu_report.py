"""What the library is worth on this GPU, in under nine minutes and without anybody at hand.

    make gpu-report                                # python3 -m benchmarks.gpu_report, where jax, flax and optax are
    make gpu-report ARGS="--out /tmp/report"       # a folder of eight JSON files instead of the repository's
    make gpu-report ARGS="--collect /tmp/report"   # takes such a folder into the repository and prints its table
    make gpu-report ARGS="--dry-run"               # every item at its smallest, on a CPU: what CI runs

Items run in order of value, each in its own process with its own time limit, and write their JSON as they go:

1. correctness of every kernel and of its gradient, see `benchmarks.correctness`,
2. the four ops against cuDNN, XLA and PyTorch,
3. the training step of iResNet-50 in bfloat16 against PyTorch,
4. the demo, where the training extras are installed or `--wheels FOLDER` carries them.

An item is skipped where this device has already measured it with the same sources (a commit that changes none of them, such as
the one that adds the results, does not make them old). At the end stands one table with the targets beside the results, and
`pallas_kernels/measured/<device>.json` holds what `common.choose` picks its defaults by.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks import report_table
from benchmarks.common import RESULTS, ROOT, cores, device_folder, digest, folder_argument, write_json
from benchmarks.kernel_cases import OPS
from pallas_kernels import measured

MINUTES = 8.75  # all items together
SKIPPED = 4  # exit status of an item that cannot run here; its last line on stderr says why
_COMMON = ("benchmarks/common.py", "pallas_kernels/common.py")


@dataclasses.dataclass(frozen=True)
class Item:
    """One measurement.

    Attributes:
      name: "correctness dilated_conv", "dilated_conv", "train_step", "demo".
      file: name of its JSON file, without the ending.
      command: arguments of Python; `{out}` stands for the folder of the JSON and `{seconds}` for what may be spent in it.
      limit: seconds after which the process is killed.
      sources: files and folders that, unchanged, make a second measurement needless.
    """

    name: str
    file: str
    command: tuple[str, ...]
    limit: float
    sources: tuple[str, ...]


def items(*, dry_run: bool) -> list[Item]:
    """All items, in order of value."""
    quick = ("--quick",) if dry_run else ()
    # Two cores are left to the device's driver and to the one that collects.
    processes = 1 if dry_run else max(min(cores() - 2, 12), 1)
    common = ("--out", "{out}", "--seconds", "{seconds}", *quick)
    correctness = [
        Item(
            f"correctness {op}",
            "correctness",
            ("-m", "benchmarks.correctness", op, "--processes", str(processes), *common),
            60.0,
            (f"pallas_kernels/{op}", "benchmarks/correctness.py", "benchmarks/kernel_cases.py", *_COMMON),
        )
        for op in OPS
    ]
    ops = [
        Item(
            op,
            op,
            ("-m", f"benchmarks.{op}", *common),
            60.0,
            (f"pallas_kernels/{op}", f"benchmarks/{op}.py", *_COMMON),
        )
        for op in OPS
    ]
    step = ("--models", "iresnet50", "--batch-size", "256", "--repeats", "20", "--compile")
    if dry_run:
        step = ("--models", "iresnet_pico", "--batch-size", "2", "--image-size", "32", "--repeats", "2")
    networks = ("jaxface/models", "jaxface/layers", "benchmarks/train_step.py", "benchmarks/common.py")
    train = Item(
        "train_step", "train_step", ("-m", "benchmarks.train_step", *step, "--out", "{out}"), 120.0, networks
    )
    demo = ("-m", "benchmarks.demo", "--out", "{out}", *quick)
    everything = ("jaxface", "experiments", "pallas_kernels", "benchmarks/demo.py")
    return [*correctness, *ops, train, Item("demo", "demo", demo, 120.0, everything)]


# --- running ----------------------------------------------------------------------------------------------------------


def run_item(
    item: Item, folder: Path, device: str, *, seconds: float, environment: Mapping[str, str], echo=print
) -> dict:
    """Runs an item in its own process and notes in its JSON how that ended.

    Args:
      item: what to run.
      folder: of the JSON files.
      device: the device's name, for the note.
      seconds: most that it may take; its own limit counts too.
      environment: of the process.
      echo: called with a line of progress.

    Returns:
      The note: "status" ("done", "failed: …", "killed after N s", "skipped: …"), "seconds", "sources", "device".
    """
    folder.mkdir(parents=True, exist_ok=True)
    limit = min(item.limit, seconds)
    note = {"status": "", "seconds": 0.0, "sources": digest(*item.sources), "device": device}
    if (op := item.name.rpartition(" ")[2]) in OPS:
        note["kernel"] = measured.kernel_version(op, environment.get("JAXFACE_REPORT_PLATFORM", "gpu"))
    started, before = time.monotonic(), _modified(folder, item)
    # A process that stops by itself has written all; compiling its last row takes a while.
    inner = max(limit - 20.0, limit / 2)
    while True:
        remaining = limit - (time.monotonic() - started)
        inside = max(inner - (time.monotonic() - started), 0.0)
        values = {"{out}": str(folder), "{seconds}": f"{inside:.0f}"}
        filled = [values.get(part, part) for part in item.command]
        status, code, progress = _process(filled, remaining, environment, limit)
        # An error of the device ends a process of checks, and so does a case that hangs: another one goes on behind it.
        again = item.file == "correctness" and code is not None and code != 0 and progress
        if not again or limit - (time.monotonic() - started) < 10:
            break
        echo(f"{item.name}: {status}; goes on behind that case")
    note |= {"status": status, "seconds": round(time.monotonic() - started, 1)}
    _note(folder, item, note, written=_modified(folder, item) != before)
    return note


def _process(arguments, seconds, environment, limit) -> tuple[str, int | None, bool]:
    """Status, exit status (None where it was killed), and whether it printed anything."""
    if "benchmarks.correctness" in arguments:  # what is right needs no search for the fastest library call
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
        environment = {**environment, "XLA_FLAGS": flags}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            code = process.wait(max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            code = None
        _end(process)
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read().strip())
    if texts[0]:
        print(texts[0][-6000:], flush=True)
    if code == 0:
        return "done", code, True
    if code == SKIPPED:
        return (texts[1].splitlines() or ["skipped"])[-1], code, False
    if code is None:
        return f"killed after {limit:.0f} s", code, True
    lines = [line for line in texts[1].splitlines() if line.strip()]
    return f"failed: {(lines or ['exit status ' + str(code)])[-1].strip()[:250]}", code, bool(texts[0])


def _end(process) -> None:
    """Ends what a process started, itself included (compilers of PyTorch outlive it)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _modified(folder: Path, item: Item) -> int | None:
    path = folder / f"{item.file}.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _note(folder: Path, item: Item, note: dict, *, written: bool) -> None:
    """Puts the note into the item's JSON; measurements of other sources do not stand beside it."""
    path = folder / f"{item.file}.json"
    content = read(path)
    if not content or (not written and item.file != "correctness"):
        content = {"benchmark": item.file, "device": note["device"], "measurements": None}
    content["report"] = {**content.get("report", {}), item.name: note}
    write_json(path, content)


def read(path: Path) -> dict:
    """A JSON file's content; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_measured(item: Item, folder: Path, device: str) -> bool:
    """Whether this device has finished the item with these sources."""
    note = read(folder / f"{item.file}.json").get("report", {}).get(item.name, {})
    return (
        note.get("status") == "done" and note["device"] == device and note["sources"] == digest(*item.sources)
    )


def run_all(
    listed: list[Item],
    folder: Path,
    device: str,
    *,
    minutes: float,
    environment: Mapping[str, str],
    skip: bool = True,
    echo: Callable[[str], None] = print,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Runs items one after another until the time is over; `after` is called when one has ended."""
    end = time.monotonic() + 60 * minutes
    for item in listed:
        remaining = end - time.monotonic()
        if skip and is_measured(item, folder, device):
            echo(f"{item.name}: measured already")
            continue
        if remaining < 5:
            note = {
                "status": "not begun: the time was over",
                "sources": digest(*item.sources),
                "device": device,
            }
            _note(folder, item, note | {"seconds": 0.0}, written=False)
            echo(f"{item.name}: {note['status']}")
            continue
        note = run_item(item, folder, device, seconds=remaining, environment=environment, echo=echo)
        echo(f"{item.name}: {note['status']}, {note['seconds']:.0f} s")
        after()


# --- the device ------------------------------------------------------------------------


def ask(code: str, environment: Mapping[str, str]) -> dict:
    """What a Python program prints as JSON in its last line, in another process: this one must not hold the device."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SystemExit(f"error: jax does not start here: {lines[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def device_here(environment: Mapping[str, str]) -> dict[str, str]:
    """ "kind" and "platform" ("cpu", "gpu", "tpu") of the device that jax takes."""
    return ask(
        "import json, jax; d = jax.devices()[0]; print(json.dumps({'kind': d.device_kind, 'platform': d.platform}))",
        environment,
    )


def results(folder: Path) -> dict[str, dict]:
    """Name -> content of every JSON file of a report."""
    return {name: read(folder / f"{name}.json") for name in ("correctness", *OPS, "train_step", "demo")}


def environment_for(*, dry_run: bool, wheels: Path | None, scratch: Path) -> dict[str, str]:
    """Environment of the items: no preallocation, the CPU in a dry run, and what `wheels` holds."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if dry_run:
        environment["JAX_PLATFORMS"] = "cpu"
        quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        environment["XLA_FLAGS"] = f"{quick} {environment.get('XLA_FLAGS', '')}".strip()
    if wheels is not None:
        target = scratch / "site"
        files = [str(path) for path in sorted(wheels.glob("*.whl"))]
        if not files:
            raise SystemExit(f"error: --wheels: {wheels} holds no *.whl")
        install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            str(target),
        ]
        done = subprocess.run([sys.executable, *install, *files], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"error: --wheels: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
        # Behind what is installed: a carried jax or numpy must not replace the one that fits the device's driver.
        environment["JAXFACE_EXTRA_SITE"] = str(target)
    return environment


def chosen_folders(given: argparse.Namespace, device: Mapping[str, str], scratch: Path) -> tuple[Path, Path]:
    """Where the JSON files and the table of defaults go."""
    if given.out is not None:
        return given.out, given.out / "measured.json"
    if given.dry_run:
        return scratch / "results", scratch / "results" / "measured.json"
    return RESULTS / device_folder(device["kind"]), measured.FOLDER / measured.file_name(device["kind"])


def collect(source: Path) -> Iterator[str]:
    """Copies the JSON files of a report into the repository: `benchmarks/results/<device>` and the table of defaults."""
    table = read(source / "measured.json")
    if not table.get("device"):
        raise SystemExit(f"error: --collect: {source} holds no measured.json of a device")
    target = RESULTS / device_folder(table["device"])
    target.mkdir(parents=True, exist_ok=True)
    for name in results(source):
        if (source / f"{name}.json").exists():
            shutil.copy(source / f"{name}.json", target / f"{name}.json")
            yield str(target / f"{name}.json")
    yield str(write_json(measured.FOLDER / measured.file_name(table["device"]), table))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=folder_argument, help="folder of the JSON files, instead of the repository's"
    )
    parser.add_argument("--dry-run", action="store_true", help="everything at its smallest, on the CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="most that all items may take")
    parser.add_argument(
        "--wheels", type=folder_argument, help="folder of wheels of the training extras, for the demo"
    )
    parser.add_argument("--again", action="store_true", help="measure what has been measured, too")
    parser.add_argument("--only", nargs="+", metavar="ITEM", help="names of items, such as train_step")
    parser.add_argument(
        "--collect", type=folder_argument, metavar="FOLDER", help="take a report's folder into the repository"
    )
    given = parser.parse_args()
    if given.collect is not None:
        for path in collect(given.collect):
            print(path)
        print(report_table.text(results(given.collect)))
        return
    listed = items(dry_run=given.dry_run)
    names = [item.name for item in listed]
    if given.only is not None:
        if unknown := [name for name in given.only if name not in names]:
            parser.error(f"--only: needs some of {', '.join(names)}; got {', '.join(unknown)}")
        listed = [item for item in listed if item.name in given.only]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        environment = environment_for(dry_run=given.dry_run, wheels=given.wheels, scratch=scratch)
        device = device_here(environment)
        if device["platform"] == "cpu" and not given.dry_run:
            raise SystemExit(
                "error: jax sees no GPU or TPU here; --dry-run runs every item at its smallest on a CPU"
            )
        environment["JAXFACE_REPORT_PLATFORM"] = "tpu" if device["platform"] == "tpu" else "gpu"
        folder, defaults = chosen_folders(given, device, scratch)

        def save_defaults():
            write_json(defaults, report_table.defaults(results(folder), device["kind"], device["platform"]))

        print(f"{device['kind']}: results go to {folder}", flush=True)
        run_all(
            listed,
            folder,
            device["kind"],
            minutes=given.minutes,
            environment=environment,
            skip=not given.again,
            echo=lambda line: print(line, flush=True),
            after=save_defaults,
        )
        save_defaults()
        print(report_table.text(results(folder)))


if __name__ == "__main__":
    main()
