import pytest

from experiments.programs import quantized_report
from jaxface.errors import UserError


@pytest.mark.slow
def test_a_row_for_each_number_of_bits(capsys):
    quantized_report.main(["vit_tiny", "--bits", "4", "--size", "32", "--classes", "10"])
    printed = capsys.readouterr().out
    assert "vit_tiny" in printed and "G operations" in printed
    rows = quantized_report.costs("vit_tiny", [4], size=32, classes=10)
    assert rows[32][0].macs == rows[4][0].macs and 6 < rows[32][0].weight_bytes / rows[4][0].weight_bytes < 8
    assert rows[4][1].operations < rows[4][0].operations < rows[32][0].operations


def test_refusals(capsys):
    for arguments, words in ((["vit_huge"], "'vit_huge' is unknown"), (["vit_tiny", "--bits", "1"], "bits")):
        with pytest.raises(SystemExit):
            quantized_report.main(arguments)
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match="model: needs a ViT"):
        quantized_report.costs("mlp", [4], size=32, classes=10)
