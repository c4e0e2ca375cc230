"""The report's own machinery: limits, what is skipped, what is recorded, its table, and the defaults made of it."""

import dataclasses
import functools
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common, correctness, gpu_report, kernel_cases, report_table
from benchmarks import dilated_conv as benchmark_dilated
from benchmarks import margin_softmax as benchmark_margin
from pallas_kernels import binary_conv, margin_softmax, measured, quantized_attention
from pallas_kernels import common as kernels
from pallas_kernels.binary_conv import api

DEVICE = "NVIDIA H200"


def item(code, *, name="demo", file="demo", limit=20.0, sources=("benchmarks/demo.py",)):
    return gpu_report.Item(name, file, ("-c", code, "{out}", "{seconds}"), limit, sources)


def shape(size, dtype="float32"):
    return jax.ShapeDtypeStruct(tuple(size), jnp.dtype(dtype))


WRITES = """
import json, pathlib, sys
path = pathlib.Path(sys.argv[1]) / "demo.json"
path.write_text(json.dumps({"device": "NVIDIA H200", "measurements": {"calls": 1}}))
"""


def run(listed, folder, **options):
    lines = []
    options = {"minutes": 1.0, "environment": dict(os.environ)} | options
    gpu_report.run_all(listed, folder, DEVICE, echo=lines.append, **options)
    return lines


def note(folder, name="demo", file="demo"):
    return json.loads((folder / f"{file}.json").read_text())["report"][name]


class TestItems:
    def test_a_finished_item_is_not_measured_again(self, tmp_path, monkeypatch):
        assert run([item(WRITES)], tmp_path)[0].startswith("demo: done")
        assert note(tmp_path)["device"] == DEVICE
        assert run([item(WRITES)], tmp_path) == ["demo: measured already"]
        assert run([item(WRITES)], tmp_path, skip=False)[0].startswith("demo: done")
        # Other sources, or another device, are another measurement.
        assert not gpu_report.is_measured(item(WRITES), tmp_path, "NVIDIA H100")
        assert not gpu_report.is_measured(item(WRITES, sources=("benchmarks/common.py",)), tmp_path, DEVICE)

    def test_a_time_limit_ends_an_item_and_is_recorded(self, tmp_path):
        slow = item(
            "import time, sys; print('begun', flush=True); time.sleep(60)",
            name="slow",
            file="slow",
            limit=1.0,
        )
        lines = run([slow, item(WRITES)], tmp_path)
        assert note(tmp_path, "slow", "slow")["status"] == "killed after 1 s"
        assert lines[1].startswith("demo: done"), "the next item runs"
        assert not gpu_report.is_measured(slow, tmp_path, DEVICE)

    def test_what_a_killed_item_wrote_is_left(self, tmp_path):
        run([item(WRITES + "import time; time.sleep(60)", limit=2.0)], tmp_path)
        written = json.loads((tmp_path / "demo.json").read_text())
        assert written["measurements"] == {"calls": 1}
        assert written["report"]["demo"]["status"] == "killed after 2 s"

    def test_a_failure_is_recorded_by_its_last_line(self, tmp_path):
        run([item(WRITES)], tmp_path)
        run([item("raise ValueError('no such thing')", sources=("benchmarks/common.py",))], tmp_path)
        assert note(tmp_path)["status"] == "failed: ValueError: no such thing"
        written = json.loads((tmp_path / "demo.json").read_text())
        assert written["measurements"] is None, "numbers of other sources would be taken for these"

    def test_an_item_that_cannot_run_here_says_why(self, tmp_path):
        code = f"import sys; print('skipped: needs grain', file=sys.stderr); sys.exit({gpu_report.SKIPPED})"
        assert run([item(code)], tmp_path)[0].startswith("demo: skipped: needs grain")
        assert not gpu_report.is_measured(item(code), tmp_path, DEVICE)

    def test_items_without_time_are_named(self, tmp_path):
        assert run([item(WRITES)], tmp_path, minutes=0.01) == ["demo: not begun: the time was over"]
        assert note(tmp_path)["status"].startswith("not begun")

    def test_checks_go_on_in_another_process_behind_a_case_that_ends_one(self, tmp_path):
        code = """
import json, pathlib, sys
path = pathlib.Path(sys.argv[1]) / "correctness.json"
calls = json.loads(path.read_text())["measurements"] if path.exists() else 0
path.write_text(json.dumps({"device": "NVIDIA H200", "measurements": calls + 1}))
print("case", calls)
sys.exit(0 if calls == 2 else 3)
"""
        checks = item(code, name="correctness binary_conv", file="correctness")
        run([checks], tmp_path)
        written = json.loads((tmp_path / "correctness.json").read_text())
        assert written["measurements"] == 3
        assert note(tmp_path, checks.name, "correctness")["status"] == "done"

    def test_items_stand_in_order_of_value_and_their_files_and_sources_exist(self):
        names = [entry.name for entry in gpu_report.items(dry_run=False)]
        assert names[:4] == [f"correctness {op}" for op in kernel_cases.OPS]
        assert names[4:] == [*kernel_cases.OPS, "train_step", "demo"]
        for entry in gpu_report.items(dry_run=True):
            assert common.digest(*entry.sources)
            assert (common.ROOT / f"{entry.command[1].replace('.', '/')}.py").exists()
        assert gpu_report.MINUTES < 9


class TestCorrectness:
    def case(self, name, operation="convolution"):
        return kernel_cases.Case("binary_conv", operation, name, lambda: None, 0.0)

    def check(self, monkeypatch, outcomes, record=None, **options):
        def compare(case, implementation):
            outcome = outcomes[case.name]
            if isinstance(outcome, Exception):
                raise outcome
            return dict(outcome)

        monkeypatch.setattr(kernel_cases, "compare", compare)
        record, saved = {} if record is None else record, []
        cases = [self.case(name) for name in outcomes]
        trusted = correctness.check(
            cases, "pallas_gpu", record, lambda: saved.append(json.dumps(record)), seconds=60, **options
        )
        return record, trusted, saved

    def test_a_case_that_fails_does_not_stop_the_others(self, monkeypatch):
        outcomes = {
            "a": {"distance": 0.0, "right": True},
            "b": RuntimeError("no such layout\nmore"),
            "c": {"distance": 0.5, "right": False},
            "d": kernels.KernelError("a refusal"),
            "e": {"distance": 0.0, "right": True},
        }
        record, trusted, saved = self.check(monkeypatch, outcomes)
        assert [entry["status"] for entry in record.values()] == [
            "right",
            "failed",
            "wrong",
            "refused",
            "right",
        ]
        assert record["convolution b"]["error"] == "RuntimeError: no such layout"
        assert trusted and '"begun"' in saved[0], "a case is written down before it begins"
        assert correctness.correct_operations(record, {"convolution": 5}) == []

    def test_after_an_error_of_the_device_the_process_ends(self, monkeypatch):
        error = type("JaxRuntimeError", (RuntimeError,), {})("INTERNAL: illegal address")
        outcomes = {"a": error, "b": {"distance": 0.0, "right": True}}
        record, trusted, _ = self.check(monkeypatch, outcomes)
        assert not trusted and list(record) == ["convolution a"]
        record, trusted, _ = self.check(monkeypatch, outcomes, record)
        assert trusted and [entry["status"] for entry in record.values()] == ["failed", "right"]

    def test_a_case_that_ended_the_process_has_failed(self, monkeypatch):
        before = {"convolution a": {"operation": "convolution", "status": "begun"}}
        record, *_ = self.check(monkeypatch, {"a": None, "b": {"distance": 0.0, "right": True}}, before)
        assert record["convolution a"]["error"] == "the process ended while this case ran"
        assert record["convolution b"]["status"] == "right"

    def test_processes_share_the_cases_and_one_that_a_case_ended_begins_again(self, tmp_path, monkeypatch):
        begun = []

        class Process:
            """Writes one case more at each start; the first start of part 1 dies."""

            def __init__(self, command, **_):
                folder, part = command[command.index("--out") + 1], command[command.index("--part") + 1]
                begun.append(part)
                self.code = 3 if begun.count(part) == 1 and part == "1" else 0
                path = common.ROOT / folder / "correctness.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps([part] * begun.count(part)))

            def poll(self):
                return self.code

        monkeypatch.setattr(correctness.subprocess, "Popen", Process)
        taken = {}
        take = lambda file: taken.update({file.parent.name: json.loads(file.read_text())})  # noqa: E731
        assert correctness.in_parts(["binary_conv"], tmp_path, 3, take, seconds=30)
        assert sorted(begun) == ["0", "1", "1", "2"]
        assert taken == {"0": ["0"], "1": ["1", "1"], "2": ["2"]}

    def test_an_operation_is_correct_when_every_case_ran_and_none_was_wrong(self):
        record = {
            "1": {"operation": "block", "status": "right"},
            "2": {"operation": "block", "status": "refused"},
            "3": {"operation": "convolution", "status": "right"},
            "4": {"operation": "dense", "status": "refused"},
        }
        total = {"block": 2, "convolution": 2, "dense": 1}
        assert correctness.correct_operations(record, total) == ["block"]


def contents(*, wrong=False):
    """A report's files as an H200 would write them, of one row each."""
    status = "wrong" if wrong else "right"
    version = measured.kernel_version("binary_conv", "gpu")
    check = {
        "kernel": version, "implementation": "pallas_gpu", "device": DEVICE, "total": {"convolution": 1},
        "correct": [] if wrong else ["convolution"],
        "cases": {"convolution x": {"operation": "convolution", "status": status, "distance": 0.25}},
    }  # fmt: skip
    seconds = {"bfloat16 convolution": 100e-6, "int8": 60e-6, "1 bit": 20e-6, "xla": 110e-6}
    row = {
        "layer": "r18 3x3 28x28 128-128", "batch": 256,
        "convolution": {
            "failed": {}, "seconds": {name: {"seconds_median": value} for name, value in seconds.items()},
            "speedups": {"int8": 100 / 60, "1 bit": 5.0, "xla": 100 / 110},
        },
        "block": {"failed": {"int8": "RuntimeError: no"}},
    }  # fmt: skip
    note = {"status": "done", "kernel": version, "sources": "", "device": DEVICE}
    step = {
        "model": "iresnet50", "image_size": 112, "batch_size": 256, "ratio": 0.9,
        "jaxface": {"per_second": 4000.0, "share_of_peak": 0.31}, "torch_eager": {"per_second": 4444.0},
        "torch_compiled_failed": "RuntimeError: no compiler",
    }  # fmt: skip
    return {
        "correctness": {"device": DEVICE, "measurements": {"binary_conv": check}},
        "binary_conv": {
            "device": DEVICE, "measurements": {"rows": [row]}, "report": {"binary_conv": note}
        },
        "train_step": {"device": DEVICE, "measurements": [step], "report": {"train_step": note}},
        "demo": {"measurements": None, "report": {"demo": {"status": "skipped: needs grain"}}},
    }  # fmt: skip


def test_a_variant_that_is_wrong_or_refused_is_not_timed():
    def refused(x):
        raise ValueError("no such layout")

    def check(name, output):
        if name == "wrong":
            raise RuntimeError("wrong, 0.3 off")
        assert output.shape == (4,)

    variants = {
        "plain": lambda x: x + 1,
        "wrong": lambda x: x - 1,
        "refused": refused,
        "ours": lambda x: 1 + x,
    }
    report = common.compare(
        variants, (jnp.ones(4),), ours="ours", peer="refused", repeats=2, iterations=3, check=check
    )
    assert report["failed"] == {
        "wrong": "RuntimeError: wrong, 0.3 off",
        "refused": "ValueError: no such layout",
    }
    assert set(report["seconds"]) == {"plain", "ours"} and report["peer"] == "plain" and report["speedup"] > 0
    nothing = common.compare({"refused": refused}, (jnp.ones(4),), ours="refused", peer="refused")
    assert nothing == {"failed": {"refused": "ValueError: no such layout"}}


class TestTable:
    def lines(self, results):
        lines = report_table.text(results).splitlines()
        return {line.split("  ")[0]: line for line in lines[2:]}

    def test_results_stand_beside_their_targets(self):
        lines = self.lines(contents())
        label = "binary_conv r18 3x3 28x28 128-128 B=256"
        assert lines[f"{label} convolution: int8"].split()[-3:] == ["1.67x", "1.6x", "met"]
        assert lines[f"{label} convolution: 1 bit"].split()[-3:] == ["5.00x", "4x", "met"]
        assert "RuntimeError: no" in lines[f"{label} block: int8"]
        assert lines["binary_conv: pallas_gpu against the reference"].endswith("met")
        assert "4000 images/s, 31.0% of peak" in lines["training step iresnet50 112² B=256: jaxface"]
        ratio = lines["training step iresnet50 112² B=256: jaxface over the faster torch"]
        assert ratio.split()[-3:] == ["0.90x", "1x", "missed"]
        assert "no compiler" in lines["training step iresnet50 112² B=256: torch_compiled"]

    def test_what_is_missing_is_named(self):
        lines = self.lines(contents())
        assert "skipped: needs grain" in lines["demo"]
        assert "not measured" in lines["margin_softmax"]
        assert "cannot be read" in self.lines({"demo": {"measurements": {}}})["demo"]

    def test_a_wrong_case_has_its_own_line(self):
        text = report_table.text(contents(wrong=True))
        assert "0 of 1 right" in text and "wrong 2.5e-01" in text


class TestDefaults:
    @pytest.fixture
    def choose(self, tmp_path, monkeypatch):
        """The default of a binary convolution on an H200 after a report."""

        def choice(results, *, kind=DEVICE, batch=256, operation="convolution"):
            table = report_table.defaults(results, DEVICE, "gpu")
            (tmp_path / measured.file_name(DEVICE)).write_text(json.dumps(table))
            monkeypatch.setattr(measured, "load", lambda kind: table if kind == DEVICE else {})
            x = jax.ShapeDtypeStruct((batch, 28, 28, 4), jnp.uint32)
            w = jax.ShapeDtypeStruct((3, 3, 128, 4), jnp.uint32)
            with kernels.assume_device(kind):
                return api._choose(None, api.geometry_of(x, w, 128, 1, "SAME", "zero"), operation)

        return choice

    def test_the_fastest_right_kernel_becomes_the_default(self, choose):
        assert choose(contents()) == "pallas_gpu"
        assert choose(contents(), batch=100) == "pallas_gpu"
        assert choose(contents(), batch=1) == "xla", "far from what was measured"
        assert choose(contents(), kind="NVIDIA H100") == "xla"
        assert choose(contents(), operation="block") == "xla", "it failed"

    def test_a_wrong_kernel_does_not(self, choose):
        assert choose(contents(wrong=True)) == "xla"

    def test_a_slower_kernel_does_not(self, choose):
        results = contents()
        results["binary_conv"]["measurements"]["rows"][0]["convolution"]["seconds"]["xla"][
            "seconds_median"
        ] = 1e-6
        assert choose(results) == "xla"

    def test_times_and_checks_of_different_sources_do_not(self, choose):
        results = contents()
        results["binary_conv"]["report"]["binary_conv"]["kernel"] = "another"
        assert choose(results) == "xla"
        results = contents()
        results["correctness"]["measurements"]["binary_conv"]["kernel"] = "another"
        assert choose(results) == "xla"


class TestFacts:
    """The facts in a table are those that the public functions ask with: else a measurement would decide nothing."""

    @pytest.fixture
    def asked(self, monkeypatch):
        """Traces a function of shapes for an H200; returns the facts that it asked with."""
        seen = []
        monkeypatch.setattr(measured, "fastest", lambda op, kind, platform, facts: seen.append(dict(facts)))

        def trace(function, *shapes, **options):
            seen.clear()
            with kernels.assume_device(DEVICE):
                jax.eval_shape(functools.partial(function, implementation=None, **options), *shapes)
            return seen[0]

        return trace

    def table(self, op, measurements):
        return [row["facts"] for row in report_table._CASES[op](measurements, "pallas_gpu")]

    def test_binary_conv(self, asked):
        rows = contents()["binary_conv"]["measurements"]
        rows["rows"][0]["block"] = rows["rows"][0]["convolution"]
        x, w, vector = shape((256, 28, 28, 4), "uint32"), shape((3, 3, 128, 4), "uint32"), shape((128,))
        assert self.table("binary_conv", rows) == [
            asked(binary_conv.binary_conv2d, x, w, channels=128),
            asked(binary_conv.binary_conv2d_block, x, w, vector, vector, channels=128),
        ]

    def test_dilated_conv(self, asked):
        rows = [row for row in benchmark_dilated.rows("gpu", quick=False) if not row.gradient]
        assert {row.kind for row in rows} == {"ddp", "dc", "ddc", "ccp"}
        seconds = {name: {"seconds_median": 1.0} for name in ("lax", "xla", "pallas")}
        measurements = {"rows": [dataclasses.asdict(row) | {"seconds": seconds} for row in rows]}
        for row, facts in zip(rows, self.table("dilated_conv", measurements), strict=True):
            shapes = [shape(row.shape[:4], "bfloat16"), *map(shape, row.filters())]

            def call(*arrays, implementation, row=row):
                return benchmark_dilated.ours(row, implementation, *arrays)

            assert facts == asked(call, *shapes), row

    @pytest.mark.parametrize("mode", ["lsq", "ptq"])
    def test_quantized_attention(self, asked, mode):
        seconds = {
            f"{name} {end}": {"seconds_median": 1.0}
            for name in ("xla", "pallas_gpu")
            for end in ("codes", "float")
        }
        row = {"mode": mode, "shape": [2, 3, 100, 850, 32], "seconds": seconds, "ratio_to": {}}
        sizes = [(2, 3, 100, 32), (2, 3, 850, 32)]
        steps = quantized_attention.AttnSteps(1.0, 1.0, 1.0, 1.0 if mode == "lsq" else None)
        floats = [shape(sizes[i], "bfloat16") for i in (0, 1, 1)]
        codes = [*(shape(size, "int8") for size in sizes), shape((2, 3, 32, 850), "int8")]
        call = functools.partial(quantized_attention.quantized_attention, steps=steps, mode=mode)
        assert self.table("quantized_attention", [row]) == [
            asked(quantized_attention.quantized_attention_codes, *codes, steps=steps, mode=mode),
            asked(call, *floats),
        ]

    @pytest.mark.parametrize("head", sorted(benchmark_margin.HEADS))
    def test_margin_softmax(self, asked, head):
        seconds = {name: {"seconds_median": 1.0} for name in ("materialized", "xla", "xla_bf16", "pallas")}
        row = {"head": head, "batch": 32, "classes": 3000, "features": 64, "seconds": seconds}
        labels = np.zeros(32, np.int32)

        def call(x, w, *, implementation):
            return margin_softmax.margin_softmax(
                x, w, labels, benchmark_margin.HEADS[head], implementation=implementation
            )[0]

        assert self.table("margin_softmax", [row]) == [
            asked(call, shape((32, 64), dtype), shape((3000, 64))) for dtype in ("float32", "bfloat16")
        ]


def test_a_report_is_collected_into_the_repository(tmp_path, monkeypatch):
    source, results, tables = (tmp_path / name for name in ("source", "results", "tables"))
    for folder in (source, tables):
        folder.mkdir()
    for name, content in contents().items():
        (source / f"{name}.json").write_text(json.dumps(content))
    (source / "measured.json").write_text(json.dumps(report_table.defaults(contents(), DEVICE, "gpu")))
    monkeypatch.setattr(gpu_report, "RESULTS", results)
    monkeypatch.setattr(measured, "FOLDER", tables)
    written = list(gpu_report.collect(source))
    assert str(results / "nvidia-h200" / "binary_conv.json") in written
    assert json.loads((tables / "nvidia-h200.json").read_text())["ops"]["binary_conv"]["correct"]
    with pytest.raises(SystemExit, match=r"holds no measured\.json"):
        list(gpu_report.collect(tmp_path / "empty"))


def test_without_an_accelerator_the_report_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu_report, "device_here", lambda environment: {"kind": "cpu", "platform": "cpu"})
    monkeypatch.setattr(sys, "argv", ["gpu_report"])
    with pytest.raises(SystemExit, match="no GPU or TPU here; --dry-run"):
        gpu_report.main()
    monkeypatch.setattr(sys, "argv", ["gpu_report", "--only", "nothing"])
    with pytest.raises(SystemExit):
        gpu_report.main()
    assert "--only: needs some of correctness binary_conv" in capsys.readouterr().err
