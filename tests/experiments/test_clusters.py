"""The commands in docs/guides/clusters.md and docs/guides/slurm.sh are ones that the launcher takes."""

import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from experiments import configs

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "guides"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (DOCS / "clusters.md").read_text(encoding="utf-8"), re.DOTALL)
SHELL = "".join(text for kind, text in BLOCKS if kind == "sh")
MANIFESTS = [text for kind, text in BLOCKS if kind == "yaml"]


def commands():
    """What follows `experiments.launch`, or the script and the work directory of a batch job."""
    launched = re.findall(r"-m experiments\.launch (.+)", SHELL + "".join(MANIFESTS))
    queued = re.findall(
        r"sbatch.* docs/guides/slurm\.sh (/\S+) (.+)", SHELL + (DOCS / "slurm.sh").read_text()
    )
    found = [re.sub(r"'$| &$", "", line).replace("$JOB_COMPLETION_INDEX", "3") for line in launched]
    return [*found, *(f"{flags} --workdir {workdir}" for workdir, flags in queued)]


def test_every_way_is_there():
    assert len(commands()) == 9


@pytest.mark.parametrize("command", commands())
def test_the_launcher_takes_the_flags(command):
    method, *flags = shlex.split(command)
    config, run = configs.parse(method, flags)
    assert run.workdir.startswith("/shared/runs/")
    together = (run.coordinator, run.processes, run.process)
    assert None not in together or together == (None, None, None)
    if run.process is not None:
        assert 0 <= run.process < run.processes and re.fullmatch(r"[\w.-]+:[0-9]+", run.coordinator)


def test_the_manifest_waits_for_results_where_the_run_writes_them():
    service, job = yaml.safe_load_all(MANIFESTS[0])
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    (script,) = pod["containers"][0]["args"]
    _, run = configs.parse(
        "sface",
        shlex.split(re.search(r"launch sface (.*) &", script)[1].replace("$JOB_COMPLETION_INDEX", "0")),
    )
    assert run.processes == spec["completions"]
    assert run.coordinator.startswith(f"{job['metadata']['name']}-0.{service['metadata']['name']}:")
    assert f"test -e {run.workdir}/results.json" in script
    assert "google.com/tpu" in str(yaml.safe_load(MANIFESTS[1]))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "script",
    [(DOCS / "slurm.sh").read_text(), SHELL, yaml.safe_load_all(MANIFESTS[0])],
    ids=["slurm.sh", "shell", "pod"],
)
def test_bash_can_read_the_scripts(script):
    if not isinstance(script, str):
        (script,) = list(script)[1]["spec"]["template"]["spec"]["containers"][0]["args"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


FAKE = """#!/bin/bash
[[ $(basename $0) == scontrol ]] && { echo "$@" >> "$CALLS"; exit; }
while [[ $1 == --* ]]; do shift; done
echo "$@" >> "$CALLS"
[[ $OUTCOME == finished ]] && touch "$DONE"
[[ $OUTCOME != failed ]]
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("outcome", "queued"), [("finished", False), ("stopped", True), ("failed", False)])
def test_the_job_queues_itself_again_only_where_the_run_was_stopped(tmp_path, outcome, queued):
    workdir, calls = tmp_path / "a run", tmp_path / "calls"
    workdir.mkdir()
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "OUTCOME": outcome, "SLURM_JOB_ID": "7",
        "DONE": str(workdir / "results.json"), "SLURM_CPUS_PER_TASK": "4", "PYTHON": "python",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", DOCS / "slurm.sh", workdir, "sface", "--steps", "5"], env=environment, check=False
    )
    assert (done.returncode == 0) == (outcome != "failed")
    said = calls.read_text().splitlines()
    assert said[0] == f"python -m experiments.launch sface --steps 5 --workdir {workdir}"
    assert said[1:] == (["requeue 7"] if queued else [])
