"""The demo on this device, timed: python -m benchmarks.demo [--quick] [--out FOLDER].

Trains SFace on rendered faces and verifies on people it never saw, as `make demo`. Without the training extras it leaves with
status 4 and one line that names the first missing package. JAXFACE_EXTRA_SITE names a folder to import from what is not
installed.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import common

SKIPPED = 4  # exit status
QUICK = (
    *("--steps", "2", "--batch-size", "8", "--backbone", "iresnet_pico", "--image-size", "32"),
    *("--data.identities", "8", "--data.held-out-identities", "6"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps on few identities")
    parser.add_argument(
        "--out",
        type=common.folder_argument,
        help="folder of the JSON file (default: benchmarks/results/<device>)",
    )
    given = parser.parse_args()
    if extra := os.environ.get("JAXFACE_EXTRA_SITE"):
        sys.path.append(extra)  # behind what is installed, which fits the device's driver
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "demo"
        started = time.perf_counter()
        try:
            from experiments import launch

            with contextlib.redirect_stdout(io.StringIO()):
                launch.main(["sface", "--workdir", str(workdir), *(QUICK if given.quick else ())])
        except ModuleNotFoundError as error:
            line = f"skipped: needs {error.name} (training extras; --wheels FOLDER carries them)"
            print(line, file=sys.stderr)
            sys.exit(SKIPPED)
        seconds = time.perf_counter() - started
        metrics = json.loads((workdir / "results.json").read_text(encoding="utf-8"))["metrics"]
    print(f"demo: {seconds:.0f} s, verification accuracy {metrics['verification/accuracy']:.3f}")
    print(common.write("demo", {"seconds": seconds, "metrics": metrics}, folder=given.out))


if __name__ == "__main__":
    main()
