"""Paths in commands: the empty one and addresses that nothing opens are refused in one line, before anything is computed."""

import pytest

from experiments import evaluate, launch, reproduce
from experiments.programs import cloak_images, convert, real_faces
from jaxface.cli.commands import export, weights

COMMANDS = {
    "workdir": (launch.main, "sface --workdir {}"),
    "init_from": (launch.main, "sface --init-from {} --workdir {tmp}/run"),
    "config": (launch.main, "sface --config {} --workdir {tmp}/run"),
    "root": (launch.main, "sface --data folder --data.root {} --workdir {tmp}/run"),
    "evaluate run": (evaluate.main, "{}"),
    "evaluate out": (evaluate.main, "{tmp} --out {}"),
    "reproduce workdir": (reproduce.main, "sface --workdir {}"),
    "cloak_images run": (cloak_images.main, "--run {} --faces {tmp} --out {tmp}/out"),
    "cloak_images faces": (cloak_images.main, "--run {tmp} --faces {} --out {tmp}/out"),
    "cloak_images out": (cloak_images.main, "--run {tmp} --faces {tmp} --out {}"),
    "convert source": (convert.main, "{} {tmp}/set.rec"),
    "convert target": (convert.main, "{tmp} {}"),
    "real_faces run": (real_faces.main, "--run {} --faces {tmp} --workdir {tmp}/run"),
    "real_faces faces": (real_faces.main, "--run {tmp} --faces {} --workdir {tmp}/run"),
    "real_faces workdir": (real_faces.main, "--run {tmp} --faces {tmp} --workdir {}"),
    "weights import": (weights.main, "import {} --network mlp_8 --bundle {tmp}/b"),
    "weights import out": (weights.main, "import {tmp}/weights.pt --network mlp_8 --bundle {}"),
    "export run": (export.main, "{} --format onnx --out {tmp}/net.onnx"),
    "export out": (export.main, "{tmp} --format onnx --out {}"),
    "export bundle": (export.main, "{tmp} --bundle {}"),
}


@pytest.mark.parametrize("path", ["", "ftp://host/faces"], ids=["empty", "address"])
@pytest.mark.parametrize("argument", COMMANDS)
def test_no_command_takes_an_empty_path_or_an_address_that_nothing_opens(refusal, tmp_path, argument, path):
    main, command = COMMANDS[argument]
    assert "needs a path" in refusal(main, [word.format(path, tmp=tmp_path) for word in command.split()])
    assert not list(tmp_path.iterdir())
