"""What a default goes by: the nearest benchmarked shape, on this device, of a kernel that was right and has not changed."""

import json
import math

import pytest

from pallas_kernels import measured

KIND = "NVIDIA H200"


def facts(pixels, *, operation="convolution", dtype="bfloat16", flag=True):
    return {"operation": operation, "dtype": dtype, "flag": flag, "pixels": pixels}


def case(pixels, xla, kernel, **words):
    return {"facts": facts(pixels, **words), "seconds": {"xla": xla, "pallas_gpu": kernel}}


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Writes a table for an H200 of one op, "op", whose one source file stands beside it."""
    package = tmp_path / "pallas_kernels"
    (package / "op").mkdir(parents=True)
    (package / "measured").mkdir()
    (package / "op" / "gpu.py").write_text(
        '"""Kernel."""\n\n\ndef f(x):\n    """Twice."""\n    return 2 * x\n'
    )
    monkeypatch.setattr(measured, "FOLDER", package / "measured")
    clear()

    def write(*cases, correct=("convolution",), **changes):
        entry = {
            "kernel": measured.kernel_version("op", "gpu"),
            "correct": {"pallas_gpu": correct},
            "cases": cases,
        }
        content = {"device": KIND, "platform": "gpu", "ops": {"op": entry | changes}}
        (package / "measured" / measured.file_name(KIND)).write_text(json.dumps(content))
        clear()
        return package

    yield write
    clear()


def clear():
    measured.load.cache_clear()
    measured.kernel_version.cache_clear()


def fastest(pixels, *, kind=KIND, **words):
    return measured.fastest("op", kind, "gpu", facts(pixels, **words))


def test_the_fastest_at_the_nearest_shape(table):
    table(case(100, 1.0, 2.0), case(1000, 3.0, 2.0))
    assert [fastest(n) for n in (100, 300, 330, 1000)] == ["xla", "xla", "pallas_gpu", "pallas_gpu"]
    assert fastest(3999) == "pallas_gpu"
    assert fastest(4001) is None, "out of reach of all benchmarked shapes"
    assert fastest(24) is None


def test_words_and_flags_must_be_equal(table):
    table(case(100, 2.0, 1.0))
    assert fastest(100) == "pallas_gpu"
    assert fastest(100, dtype="float32") is None
    assert fastest(100, flag=False) is None
    assert measured.fastest("op", KIND, "gpu", facts(100) | {"more": 1}) is None
    assert measured.fastest("another", KIND, "gpu", facts(100)) is None


def test_another_device_is_not_known(table):
    table(case(100, 2.0, 1.0))
    assert fastest(100, kind="NVIDIA H100 80GB HBM3") is None
    assert measured.load("NVIDIA H100 80GB HBM3") == {}


def test_a_kernel_that_was_wrong_is_never_a_default(table):
    table(case(100, 2.0, 1.0), correct=())
    assert fastest(100) == "xla"
    table(case(100, 2.0, 1.0), case(100, 2.0, 1.0, operation="block"), correct=("block",))
    assert fastest(100) == "xla"
    assert fastest(100, operation="block") == "pallas_gpu"


def test_where_the_plain_form_could_not_be_held_the_kernel_stands_alone(table):
    table(case(100, None, 1.0))
    assert fastest(100) == "pallas_gpu"
    table(case(100, None, 1.0), correct=())
    assert fastest(100) is None


@pytest.mark.parametrize(
    ("change", "known"),
    [
        (
            '"""Another head."""\n\n\ndef f(x):\n    # A comment.\n    """Two times."""\n    return 2 * x\n',
            True,
        ),
        ("def f(x):\n    return (2 *\n            x)\n", False),  # brackets are code
        ("def f(x):\n    return 3 * x\n", False),
        ('def f(x):\n    return 2 * x\n\n\nNAME = "text"\n', False),
    ],
)
def test_a_kernel_that_changed_is_not_known(table, change, known):
    package = table(case(100, 2.0, 1.0))
    (package / "op" / "gpu.py").write_text(change)
    measured.kernel_version.cache_clear()
    assert fastest(100) == ("pallas_gpu" if known else None)


def test_a_version_leaves_out_the_other_platforms_kernels(table):
    package = table(case(100, 2.0, 1.0))
    version = measured.kernel_version("op", "gpu")
    (package / "op" / "tpu.py").write_text("x = 1\n")
    clear()
    assert measured.kernel_version("op", "gpu") == version
    (package / "op" / "xla.py").write_text("x = 1\n")
    clear()
    assert measured.kernel_version("op", "gpu") != version, (
        "the plain form is what a kernel was compared with"
    )
    (package / "op" / "xla.py").write_text("def f(:\n")
    clear()
    assert measured.kernel_version("op", "gpu") is None or fastest(100) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"device": "NVIDIA H100", "ops": {}}'])
def test_a_table_that_cannot_be_read_says_nothing(table, text):
    package = table(case(100, 2.0, 1.0))
    (package / "measured" / measured.file_name(KIND)).write_text(text)
    clear()
    assert fastest(100) is None


def test_every_committed_table_is_complete():
    """Words, numbers above 0, and one kernel per platform."""
    for path in measured.FOLDER.glob("*.json"):
        content = json.loads(path.read_text())
        assert path.name == measured.file_name(content["device"])
        for entry in content["ops"].values():
            for row in entry["cases"]:
                numbers = [v for v in row["facts"].values() if not isinstance(v, (str, bool))]
                assert all(value > 0 for value in numbers)
                assert all(v is None or (v > 0 and math.isfinite(v)) for v in row["seconds"].values())
