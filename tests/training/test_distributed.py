"""How processes find each other, and what happens when one of them dies."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxface import training
from jaxface.errors import UserError
from jaxface.training import distributed

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    *("--quiet", "--backbone", "iresnet_pico", "--image-size", "16", "--batch-size", "16"),
    *("--cadence.log-every", "1", "--cadence.checkpoint-every", "5"),
    *("--data.identities", "8", "--data.per-identity", "8", "--data.held-out-identities", "8"),
    *("--data.held-out-per-identity", "4"),
]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"}, "slurm"),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, None),
        ({"SLURM_NTASKS": "8"}, None),  # in the batch script, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "ompi"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"PMI_SIZE": "2"}, "mpi4py"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "k8s"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod that is no job, such as a notebook's
        ({"TPU_WORKER_HOSTNAMES": "t1k-0,t1k-1"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1:8080"}, "tpu"),
    ],
)
def test_the_environment_says_who_started_us(environment, expected):
    assert distributed.launcher(environment) == expected


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` would have been called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    monkeypatch.setattr(distributed, "on_tpu_host", lambda: False)
    return calls


def test_a_process_alone_joins_nothing(joined):
    training.start_processes()
    training.start_processes("localhost:1234", 1, 0)
    assert joined == []


def test_three_flags_or_a_launcher(joined, monkeypatch):
    training.start_processes("host:1234", 4, 3)
    monkeypatch.setattr(distributed, "launcher", lambda: "slurm")
    training.start_processes()
    monkeypatch.setattr(distributed, "launcher", lambda: "tpu")
    training.start_processes()
    heartbeat = {"heartbeat_timeout_seconds": distributed.HEARTBEAT_SECONDS}
    assert joined == [
        {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3, **heartbeat},
        {"cluster_detection_method": "slurm", **heartbeat},
        heartbeat,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, 0), "processes: coordinator, processes and process go together"),
        ((None, 2, 0), "coordinator: coordinator, processes and process go together"),
        (("host", 2, 0), "coordinator: needs HOST:PORT, got 'host'"),
        ((":80", 2, 0), "coordinator: needs HOST:PORT, got ':80'"),
        (("host:x", 2, 0), "coordinator: needs HOST:PORT"),
        (("host:1", 0, 0), "processes: needs an integer from 1, got 0"),
        (("host:1", 2, 2), "process: needs an integer from 0 to 1, got 2"),
    ],
)
def test_flags_that_do_not_fit_are_refused(joined, arguments, message):
    with pytest.raises(UserError, match=message):
        training.start_processes(*arguments)
    assert joined == []


def test_what_cannot_be_joined_is_said_in_a_line(monkeypatch):
    def fail(**_):
        raise RuntimeError("connection refused\nand a long story")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(UserError, match=r"^processes: cannot join the run: connection refused$"):
        training.start_processes("host:1234", 2, 1)


def test_alone_a_failure_passes_through():
    with pytest.raises(UserError, match="as it is"), training.together():
        raise UserError("as it is")


def test_alone_there_is_nothing_to_connect(monkeypatch):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("all",))
    monkeypatch.setattr(jax, "jit", None)
    distributed.connect(mesh)


LATE = """
import sys, time
import jax, numpy as np
from jaxface.training import distributed

distributed.start_processes(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2).T, ("data", "model"))
distributed.connect(mesh)
time.sleep(35 * int(sys.argv[2]))  # as if this process compiled for so long
for axes in (("data",), ("model",), ("data", "model")):
    total = lambda: jax.lax.psum(2 * jax.lax.axis_index(axes), axes)
    summed = jax.shard_map(total, mesh=mesh, in_specs=(), out_specs=jax.sharding.PartitionSpec())
    print(int(jax.jit(summed)()), end=" ")
"""


def pair_of(program):
    """What two processes of two devices each print."""
    port = free_port()
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(port), str(index)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    return [out for out, _ in said]


@pytest.mark.slow
def test_one_process_may_compile_longer_than_gloo_waits():
    said = pair_of(LATE)
    assert all(out.endswith("2 2 12 ") for out in said), said  # behind what Gloo says of its connections


MADE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec
from jaxface import training

training.start_processes(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
parallel = training.make_parallel(model_shards=2)
make = lambda: {"host": np.arange(4.0), "rows": jnp.arange(8).reshape(4, 2), "key": jax.random.key(3)}
state = parallel.create(make, rules={"rows": PartitionSpec("model")}, compiled=False)
again = parallel.create(lambda: state, rules={"rows": PartitionSpec("model")}, compiled=False)
key = jax.random.key_data(again["key"])
print(len(again["rows"].sharding.device_set), again["rows"].addressable_shards[0].data.shape,
      *(int(jnp.sum(again[name])) for name in ("host", "rows")), int(jnp.sum(key)), end=" ")
"""


@pytest.mark.slow
def test_a_state_made_by_each_process_is_spread_over_both():
    said = pair_of(MADE)
    assert all(out.endswith("4 (2, 2) 6 28 3 ") for out in said), said


def start(workdir, index, count, port, *flags):
    """One of several processes, each with 8 / count devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}",
    }
    command = [sys.executable, "-m", "experiments.launch", "sface", "--workdir", str(workdir), *TINY, *flags]
    if count > 1:
        command += ["--coordinator", f"localhost:{port}", "--processes", str(count), "--process", str(index)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.mark.slow
def test_two_processes_are_one_and_one_goes_on_where_two_stopped(tmp_path):
    port = free_port()
    pair = [start(tmp_path / "two", i, 2, port, "--steps", "12") for i in range(2)]
    codes = [(process.wait(400), process.stderr.read()) for process in pair]
    assert [code for code, _ in codes] == [0, 0], codes
    alone = start(tmp_path / "one", 0, 1, None, "--steps", "12")
    assert alone.wait(300) == 0, alone.stderr.read()
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert sorted(two) == list(range(1, 13))
    # The loss passes through 0 on its way: a difference is held to the largest one.
    assert two == pytest.approx(one, rel=1e-3, abs=1e-3 * max(map(abs, one.values())))
    # What two processes wrote, one reads: the run is complete, and is found so.
    again = start(tmp_path / "two", 0, 1, None, "--steps", "12")
    assert again.wait(300) == 0, again.stderr.read()
    assert losses(tmp_path / "two") == two


@pytest.mark.slow
def test_one_process_that_is_asked_to_stop_stops_both(tmp_path):
    port = free_port()
    pair = [start(tmp_path, i, 2, port, "--steps", "5000") for i in range(2)]
    metrics = tmp_path / "metrics.jsonl"
    for _ in range(1000):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(0.5)
        assert [process.poll() for process in pair] == [None, None], pair[0].stderr.read()
    else:
        pytest.fail("no steps in 500 s")
    pair[1].send_signal(signal.SIGTERM)
    codes = [(process.wait(400), process.stderr.read()) for process in pair]
    assert [code for code, _ in codes] == [0, 0], codes
    saved = [int(path.name) for path in tmp_path.glob("checkpoints/*/*") if path.name.isdigit()]
    assert max(saved) == max(losses(tmp_path)) and not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down(tmp_path):
    port = free_port()
    pair = [start(tmp_path / "run", i, 2, port, "--steps", "5000") for i in range(2)]
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(400):
        if metrics.exists() and metrics.read_text().count("\n") > 6:
            break
        time.sleep(0.5)
        assert [process.poll() for process in pair] == [None, None], pair[0].stderr.read()
    pair[1].send_signal(signal.SIGKILL)
    started = time.monotonic()
    assert pair[0].wait(3 * distributed.HEARTBEAT_SECONDS) != 0
    assert time.monotonic() - started < 2.5 * distributed.HEARTBEAT_SECONDS
    said = pair[0].stderr.read()
    assert "lost the others" in said or "another task died" in said, said[-2000:]
    pair[1].wait(10)
