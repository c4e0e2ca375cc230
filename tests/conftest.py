"""Runs before anything imports JAX: the CPU as eight devices, and a compilation cache that survives the run.

`pytest -m accelerator` alone takes the GPU or TPU that JAX finds; every other run is for the CPU.
"""

import os
import pathlib
import tempfile

flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / f"jaxface-tests-{os.getuid()}")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_configure(config):
    """Chooses the platform before a test module imports JAX, in the workers of pytest-xdist too."""
    if config.getoption("markexpr").strip() != "accelerator":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
