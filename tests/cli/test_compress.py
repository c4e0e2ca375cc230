"""`jaxface compress`: a picture to a file and back, through a run and through the file of its codec; and what is refused."""

import re

import jax
import numpy as np
import pytest
import small_codec as small
from PIL import Image

from jaxface import inference, training
from jaxface.cli import main as cli
from jaxface.errors import UserError
from jaxface.training.workdir import stage_folder

pytest.importorskip("constriction")


def write_stage(run, number, weight, params):
    folder = stage_folder(run, number, f"rate_{weight:g}")
    checkpoints = training.Checkpoints(folder)
    checkpoints.save(0, {"params": {"codec": params}, "extra": {}}, {"score": None, "metrics": {}})
    checkpoints.close()
    training.write_description(folder, inference.codec_description(small.SMALL, weight))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "edic"
    for number, weight in enumerate((512.0, 64.0)):
        write_stage(run, number, weight, jax.tree.map(np.asarray, small.params_of(small.SMALL, number)))
    return run


@pytest.fixture(scope="module")
def video_run(tmp_path_factory):
    run, spec = tmp_path_factory.mktemp("runs") / "video", small.VIDEO
    folder = stage_folder(run, 1, "video_512")
    checkpoints = training.Checkpoints(folder)
    state = {"params": {"video": small.video_params()}, "extra": {"codec": small.params_of(small.SMALL)}}
    checkpoints.save(0, state, {"score": None, "metrics": {}})
    checkpoints.close()
    training.write_description(folder, inference.video_description(spec, small.SMALL, 512.0))
    return run


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)).save(path)
    return path


def test_there_and_back(run, picture, tmp_path, capsys):
    cli.main(["compress", "encode", str(picture), str(tmp_path / "a.edic"), "--run", str(run)])
    size = (tmp_path / "a.edic").stat().st_size
    assert f"{size:,} bytes, {8 * size / 221:.4f} bits per pixel" in capsys.readouterr().out
    cli.main(["compress", "info", str(tmp_path / "a.edic")])
    assert "17x13 RGB, λ = 64, codec" in capsys.readouterr().out
    # The tables were made once and lie beside the checkpoints; the file decodes with them alone.
    codec = run / "codec-64.safetensors"
    assert codec.is_file()
    cli.main(["compress", "decode", str(tmp_path / "a.edic"), str(tmp_path / "a.png"), "--run", str(codec)])
    decoded = np.asarray(Image.open(tmp_path / "a.png"))
    opened = inference.open_codec(run)
    expected = opened.decode(opened.encode(np.asarray(Image.open(picture))).data)
    np.testing.assert_array_equal(decoded, expected)


def test_the_codec_of_another_weight(run, picture, tmp_path):
    assert inference.codec_weights(run) == [512.0, 64.0]
    out = str(tmp_path / "b.edic")
    cli.main(["compress", "encode", str(picture), out, "--run", str(run), "--weight", "512"])
    assert inference.open_codec(run, weight=512.0).decode((tmp_path / "b.edic").read_bytes()).shape == (
        13,
        17,
        3,
    )
    with pytest.raises(UserError, match="of another codec"):
        inference.open_codec(run).decode((tmp_path / "b.edic").read_bytes())


@pytest.mark.slow
def test_a_clip_there_and_back(video_run, tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in (2, 10, 1):  # in natural order
        Image.new("RGB", (19, 17), (number * 20, 90, 0)).save(frames / f"{number}.png")
    file, out = tmp_path / "a.edvc", tmp_path / "out"
    cli.main(["compress", "encode", str(frames), str(file), "--run", str(video_run)])
    assert "for 3 frames" in capsys.readouterr().out
    cli.main(["compress", "info", str(file)])
    assert "3 frames of 19x17 RGB" in capsys.readouterr().out
    cli.main(["compress", "decode", str(file), str(out), "--run", str(video_run)])
    names = sorted(path.name for path in out.iterdir())
    assert names == ["000001.png", "000002.png", "000003.png"] and Image.open(out / names[0]).size == (19, 17)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    Image.new("RGB", (19, 18)).save(frames / "11.png")
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (("decode", file, out, "--run", video_run), "out: needs a new folder"),
        (
            ("encode", frames, tmp_path / "b", "--run", video_run),
            "frames: need one size, RGB: frame 3 is 19x18",
        ),
        (("encode", tmp_path / "empty", tmp_path / "b", "--run", video_run), "frames: no image in"),
    ):
        assert re.search(words, refused(arguments, capsys)), words
    damaged = tmp_path / "c.edvc"
    damaged.write_bytes(file.read_bytes()[:-1] + b"?")
    assert "damaged" in refused(("decode", damaged, tmp_path / "c", "--run", video_run), capsys)
    assert not (tmp_path / "c").exists() and not (tmp_path / "b").exists()


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["compress", *map(str, arguments)])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_refusals_are_one_line_and_leave_no_file(run, picture, tmp_path, capsys):
    out, junk = tmp_path / "out.png", tmp_path / "junk.edic"
    junk.write_bytes(b"EDIC" + bytes(20))
    Image.new("RGBA", (20, 20)).save(tmp_path / "alpha.png")
    Image.new("RGB", (5, 20)).save(tmp_path / "thin.png")
    for arguments, words in (
        (("decode", junk, out, "--run", run), "stream: it is cut short"),
        (("decode", picture, out, "--run", run), "stream: it is no EDIC file"),
        (("decode", junk, tmp_path / "out.jpg", "--run", run), "out: needs a file that ends in .png"),
        (("decode", tmp_path / "no", out, "--run", run), "in: cannot read"),
        (("encode", tmp_path / "alpha.png", out, "--run", run), "needs one without transparency"),
        (("encode", tmp_path / "thin.png", out, "--run", run), "needs sides of at least 8 pixels"),
        (("encode", picture, out, "--run", tmp_path), "holds no run of a codec"),
        (("encode", picture, out, "--run", picture), "codec: .* cannot be read"),
        (("encode", picture, out, "--run", run, "--weight", "3"), "has codecs of 512, 64, not 3"),
        (("encode", picture, out), "run: encode needs --run RUN"),
        (("encode", picture), "out: encode needs a file to write"),
        (("encode", picture, tmp_path / "none" / "a.edic", "--run", run), "out: needs a folder that exists"),
        (("info", picture), "stream: it is no EDIC file"),
        (("info", junk, out), "info: needs a file alone"),
    ):
        assert re.search(words, refused(arguments, capsys)), words
        assert not out.exists()
