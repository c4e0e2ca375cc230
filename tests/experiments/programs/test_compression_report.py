"""The report on whole pictures: curves, BD-rates, and what is refused."""

import json

import numpy as np
import pytest
import small_codec as small
from PIL import Image

from experiments.programs import compression_report as report
from jaxface import inference
from jaxface.errors import UserError

pytest.importorskip("constriction")


def point(bpp, psnr):
    return report.Point(0.0, bpp, psnr, np.nan, 0.0, 0.0)


def test_a_point_that_another_one_beats_is_left_out():
    points = [point(0.5, 30), point(0.2, 25), point(0.3, 24), point(0.9, 33)]
    assert report.increasing(points, "psnr") == ([0.2, 0.5, 0.9], [25, 30, 33])
    curves = {"a": points, "b": [point(0.4 * bpp, psnr) for bpp, psnr in ((0.2, 25), (0.5, 30), (0.9, 33))]}
    table = report.bd_rates({**curves, "single": [point(0.1, 20)]})
    assert table["b"]["a"] == pytest.approx(-60, abs=1e-6) and "single" not in table


def test_pillows_encoders_take_fewer_bytes_at_lower_quality():
    picture = np.asarray(Image.effect_noise((64, 64), 50).convert("RGB"))
    points = [report.measure(q, report.pillow_codec("JPEG", q), [picture]) for q in (5, 90)]
    assert (
        points[0].bpp < points[1].bpp and points[0].psnr < points[1].psnr and np.isnan(points[0].ms_ssim_db)
    )


def test_a_report_of_files(tmp_path, capsys):
    inference.save_codec(tmp_path / "one.safetensors", small.codec())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, size in (("a", (24, 24)), ("b", (24, 20))):
        Image.effect_noise(size, 40).convert("RGB").save(pictures / f"{name}.png")
    arguments = [
        f"ours={tmp_path / 'one.safetensors'}",
        "--images",
        str(pictures),
        "--workdir",
        str(tmp_path / "out"),
    ]
    report.main(arguments)
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["pictures"] == ["a", "b"] and record["points"]["ours"][0]["setting"] == 512
    assert {"JPEG", "WEBP", "AVIF"} >= record["points"].keys() - {"ours"} >= {"JPEG"}
    assert (tmp_path / "out" / "psnr.png").stat().st_size > 0 and "ours" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        report.main([*arguments, "--crop", "30"])
    assert "crop: needs 1 to 24 pixels" in capsys.readouterr().err


def test_the_middle_of_a_picture():
    picture = np.arange(6 * 8 * 3).reshape(6, 8, 3)
    np.testing.assert_array_equal(report.middle(picture, 4), picture[1:5, 2:6])
    with pytest.raises(UserError, match="crop: needs 1 to 6"):
        report.middle(picture, 7)
