import json

import pytest

from experiments.programs import hardware_report
from jaxface.errors import UserError
from jaxface.hardware import Accelerator


def test_end_to_end(tmp_path, capsys):
    hardware_report.main(
        [
            "retinaface",
            "--context",
            "dilated",
            "--image-size",
            "128",
            "--rows",
            "3",
            "--workdir",
            str(tmp_path),
        ]
    )
    written = json.loads((tmp_path / "report.json").read_text())
    assert (tmp_path / "report.png").stat().st_size > 5000
    assert written["network"] == "retinaface dilated" and written["total"]["weights"] == 426_736
    cycles = written["total"]["cycles"]
    assert cycles["proposed"] < cycles["zeros"]
    assert cycles == {
        name: sum(row["cycles"][name] for row in written["layers"])
        for name in ("proposed", "zeros", "window")
    }
    branch = next(row for row in written["layers"] if row["dilation"] == [2, 2])
    assert branch["cycles"]["zeros"] / branch["cycles"]["proposed"] == 25 / 9
    shown = capsys.readouterr().out
    assert f"all {len(written['layers'])}" in shown and "426,736" in shown


def test_machines_have_about_as_many_multipliers():
    compared = hardware_report.machines(64, 16, 1, None)
    assert compared["proposed"] == Accelerator()
    assert [machine.multipliers for machine in compared.values()] == [1024, 1024, 1008]


def test_binary_layers_have_one_bit():
    layers = hardware_report.network_layers("binary_small", image_size=8, channels=1, embedding=10)
    bits = {layer.name.partition("/")[2]: (layer.bits_in, layer.bits_weight) for layer in layers}
    assert bits["block1/binary"] == (1, 1) and bits["input_dense"] == bits["head_dense"] == (8, 8)
    quarter = hardware_report.network_layers("binary_small", image_size=8, channels=1, bits=2)
    assert quarter[0].bits_weight == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iresnet_pica", {}, "network: 'iresnet_pica' is unknown; did you mean 'iresnet_pico'?"),
        (
            "iresnet_pico",
            {"context": "ssh"},
            "context: 'iresnet_pico' has none; detectors with one are retinaface",
        ),
        ("iresnet_pico", {"image_size": 4}, "image_size: needs an integer from 8, got 4"),
        ("iresnet_pico", {"bits": 0}, "bits: needs"),
        ("retinaface", {"context": "fpn"}, "context: needs one of"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(UserError, match=message):
        hardware_report.network_layers(name, **options)
