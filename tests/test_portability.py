"""What Linux has and other systems lack is hidden: the library imports, reads, locks and counts without it."""

import os
import pathlib
import pkgutil
import subprocess
import sys

import pytest

from benchmarks import common
from experiments.programs import convert
from jaxface.data import IRHeader, RecordFile, write_record
from jaxface.data.sources import recordio
from jaxface.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def test_everything_imports_without_them():
    packages = ("jaxface", "pallas_kernels", "experiments")
    names = [
        info.name
        for package in packages
        for info in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
    ]
    assert len(names) > 300
    code = (
        "import os, sys, importlib\n"
        "sys.modules.update(fcntl=None, resource=None)\n"
        "for name in ('pread', 'pwrite', 'sched_getaffinity', 'O_CLOEXEC', 'fork'):\n"
        "    vars(os).pop(name, None)\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "import benchmarks.common, benchmarks.input_pipeline\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_records_are_read_without_pread(tmp_path, monkeypatch):
    path = tmp_path / "train.rec"
    payloads = [recordio.pack(IRHeader(0, float(i), i, 0), bytes([i]) * 40) for i in range(5)]
    with path.open("wb") as rec, path.with_suffix(".idx").open("wb") as idx:
        for key, payload in enumerate(payloads):
            write_record(rec, idx, key, payload)
    monkeypatch.delattr(os, "pread")
    records = RecordFile(path)
    assert [records[i] for i in (3, 0, 4, 1, 2)] == [payloads[i] for i in (3, 0, 4, 1, 2)]
    assert records.header(2)[0].label == 2.0
    records.close()


def test_a_file_beside_the_folder_locks_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    final = tmp_path / "faces"
    lock = tmp_path / ".faces.converting.lock"
    with convert._working(final) as work:
        assert work.is_dir() and lock.is_file()
        with (
            pytest.raises(UserError, match=r"another process is writing .*: delete .*\.lock"),
            convert._working(final),
        ):
            pass
        assert lock.is_file()
    assert not lock.exists()
    with pytest.raises(ValueError, match="stop"), convert._working(final):
        raise ValueError("stop")
    assert not lock.exists()


def test_all_cores_count_where_the_system_does_not_say_which(monkeypatch):
    assert common.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert common.cores() == os.cpu_count()
