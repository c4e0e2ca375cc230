"""Runs before anything imports JAX: the CPU as eight devices, and a compilation cache that survives the run.

`pytest -m accelerator` alone takes the GPU or TPU that JAX finds; every other run is for the CPU.
"""

import collections
import ctypes
import gc
import getpass
import os
import pathlib
import tempfile

import pytest

flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(tempfile.gettempdir()) / f"jaxface-tests-{getpass.getuser()}"),
)
# Programs of single operations too: a test file without `jit` runs hundreds, each in milliseconds but compiled in many more.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("MPLBACKEND", "Agg")


# Beyond this much memory a test process lets go of its compiled programs. Not after every module: those of single
# operations are shared by many, and each costs milliseconds to trace and to load again.
MEMORY_FOR_PROGRAMS = 2e9  # bytes


@pytest.fixture(scope="module", autouse=True)
def _let_programs_go():
    yield
    statm = pathlib.Path("/proc/self/statm")
    if (
        not statm.exists()
        or int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MEMORY_FOR_PROGRAMS
    ):
        import jax

        jax.clear_caches()
        gc.collect()
        # Freed memory goes back to the system, or the process would stay above the limit and drop everything after each
        # module from here on.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


def pytest_collection_finish():
    """What was imported stays: the collector need not walk it again, nor so often through JAX's many small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--cpu-times", action="store_true", help="print CPU-seconds per test file")


def pytest_configure(config):
    """Chooses the platform before a test module imports JAX, in the workers of pytest-xdist too."""
    if config.getoption("markexpr").strip() != "accelerator":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if config.getoption("--cpu-times"):
        config.pluginmanager.register(_CpuTimes(config))


class _CpuTimes:
    """CPU-seconds of every test file, of the test processes and those they started, over all workers."""

    def __init__(self, config):
        self.seconds = collections.Counter()
        self.workeroutput = getattr(config, "workeroutput", None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        before = sum(os.times()[:4])
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid.partition("::")[0]] += sum(os.times()[:4]) - before

    def pytest_sessionfinish(self):
        if self.workeroutput is not None:
            self.workeroutput["cpu_times"] = dict(self.seconds)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.seconds.update(getattr(node, "workeroutput", {}).get("cpu_times", {}))

    def pytest_terminal_summary(self, terminalreporter):
        if self.workeroutput is None:
            terminalreporter.section("CPU-seconds per test file")
            for name, seconds in self.seconds.most_common():
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
            terminalreporter.write_line(f"{self.seconds.total():8.1f}  all")
