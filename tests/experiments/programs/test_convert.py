import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.programs import convert
from jaxface import data
from jaxface.data.sources import recordio
from jaxface.data.sources.images import decode_image, encode_image
from jaxface.errors import UserError

ROOT = pathlib.Path(convert.__file__).parents[2]


def jpeg(number, size=16):
    return encode_image(
        np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8), encoding="jpeg"
    )


@pytest.fixture
def people(tmp_path):
    """Five people with five images each, JPEG but for one PNG and one BMP; and one that is none."""
    root = tmp_path / "people"
    for number in range(25):
        folder = root / f"s{number // 5 + 8}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number % 5}.jpg").write_bytes(jpeg(number))
    (root / "s8" / "2.png").write_bytes(encode_image(decode_image(jpeg(2))))
    (root / "s8" / "2.jpg").unlink()
    import cv2

    pixels = decode_image((root / "s9" / "3.jpg").read_bytes())
    cv2.imwrite(str(root / "s9" / "3.bmp"), pixels[..., ::-1])
    (root / "s9" / "3.jpg").unlink()
    (root / "s10" / "9.jpg").write_bytes(b"no image")
    return root


def files(root):
    """Path -> bytes of everything under a folder, hidden files too."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def run(*arguments):
    convert.main([str(argument) for argument in (*arguments, "--quiet")])


def test_round_trips(people, tmp_path, capsys):
    folder = data.FolderSource(people, image_size=16)
    images = [folder[i]["image"] for i in range(len(folder)) if folder.paths[i].stem != "9"]
    labels = [int(folder.labels[i]) for i in range(len(folder)) if folder.paths[i].stem != "9"]
    run(people, tmp_path / "rec/train.rec")
    assert capsys.readouterr().err == "left out: 1 images that do not decode\n"
    run(tmp_path / "rec", tmp_path / "tfds", "--to", "tfds")
    run(tmp_path / "tfds", tmp_path / "folder", "--to", "folder")
    run(tmp_path / "folder", tmp_path / "again/train.rec")
    run(people, tmp_path / "direct", "--to", "tfds")
    run(tmp_path / "direct/faces/1.0.0", tmp_path / "named", "--to", "folder")
    run(people, tmp_path / "copy", "--to", "folder")
    assert files(tmp_path / "rec") == files(tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "rec").iterdir()) == ["property", "train.idx", "train.rec"]
    for source in (
        data.RecordIOFaces(tmp_path / "rec"),
        data.TfdsSource("faces", data_dir=str(tmp_path / "tfds"), image_size=16),
        data.FolderSource(tmp_path / "folder", image_size=16),
        data.TfdsSource("faces", data_dir=str(tmp_path / "direct"), image_size=16),
        data.FolderSource(tmp_path / "named", image_size=16),
    ):
        assert source.labels.tolist() == labels and source.corrupt == 0
        for i, image in enumerate(images):
            np.testing.assert_array_equal(source[i]["image"], image)
    assert sorted(p.name for p in (tmp_path / "named").iterdir()) == ["s10", "s11", "s12", "s8", "s9"]
    assert sorted(p.name for p in (tmp_path / "tfds/faces").iterdir()) == ["1.0.0"]  # nothing left beside it
    # JPEG and PNG bytes are those of the source; the BMP has become PNG.
    stored = sorted(file for name, file in files(people).items() if not name.endswith(("bmp", "9.jpg")))
    copied = sorted(files(tmp_path / "copy").values())
    assert set(stored) < set(copied) and len(copied) == 25
    encoded = data.RecordIOFaces(tmp_path / "rec")
    assert {encoded.encoded(i) for i in range(25)} == set(copied)


def test_packs_and_folders_of_pairs(tmp_path, capsys):
    images, same = [jpeg(i) for i in range(24)], [i % 3 == 0 for i in range(12)]
    images[4] = encode_image(decode_image(images[4]))
    data.write_bin(tmp_path / "lfw.bin", images, same)
    run(tmp_path / "lfw.bin", tmp_path / "pairs")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lfw.bin", "pairs"]
    assert sorted(p.name for p in (tmp_path / "pairs/00002-different").iterdir()) == ["0.png", "1.jpg"]
    run(tmp_path / "pairs", tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "lfw.bin").read_bytes()
    data.write_bin(tmp_path / "damaged.bin", [*images[:7], b"no image", *images[8:]], same)
    capsys.readouterr()
    run(tmp_path / "damaged.bin", tmp_path / "fewer")
    assert capsys.readouterr().err == "left out: 1 images that do not decode\n"
    run(tmp_path / "fewer", tmp_path / "fewer.bin")
    found, labels = data.read_bin(tmp_path / "fewer.bin")
    assert found == images[:6] + images[8:] and labels.tolist() == same[:3] + same[4:]


class Interrupted(convert.FolderItems):
    """Stops at an image, as Ctrl-C does."""

    at = 0

    def encoded(self, index):
        if index == self.at:
            raise KeyboardInterrupt
        return super().encoded(index)


FINALS = {"rec": "train.rec", "tfds": "faces/1.0.0", "folder": "images"}


@pytest.mark.parametrize("kind", FINALS)
@pytest.mark.parametrize("at", [0, 3, 4, 13, 24])
def test_interrupted_and_run_again_gives_the_files_of_one_run(people, tmp_path, kind, at):
    whole, part = tmp_path / "whole", tmp_path / "part"
    left_out = convert.convert(convert.FolderItems(people), whole / FINALS[kind], kind, chunk=4)
    items = Interrupted(people)
    items.at = at
    with pytest.raises(KeyboardInterrupt):
        convert.convert(items, part / FINALS[kind], kind, chunk=4)
    # Nothing passes for a data set.
    assert not (part / FINALS[kind]).exists() and not list(part.rglob("dataset_info.json"))
    assert all(name.startswith(".") for name in os.listdir(part if kind != "tfds" else part / "faces"))
    read = []

    class Counted(convert.FolderItems):
        def encoded(self, index):
            read.append(index)
            return super().encoded(index)

    assert convert.convert(Counted(people), part / FINALS[kind], kind, chunk=4) == left_out
    assert len(read) == 26 - at // 4 * 4  # what was done is not done again
    assert files(part) == files(whole)


@pytest.mark.parametrize("kind", FINALS)
def test_interrupted_while_it_gives_the_names(people, tmp_path, kind, monkeypatch):
    convert.convert(convert.FolderItems(people), tmp_path / "whole" / FINALS[kind], kind, chunk=10)
    replace, replaced = os.replace, []
    for allowed in range(12):
        part = tmp_path / f"part{allowed}"
        replaced.clear()

        def limited(old, new, allowed=allowed):
            if "manifest" not in str(new):
                if len(replaced) == allowed:
                    raise KeyboardInterrupt
                replaced.append(new)
            replace(old, new)

        monkeypatch.setattr(os, "replace", limited)
        try:
            convert.convert(convert.FolderItems(people), part / FINALS[kind], kind, chunk=10)
            done = True
        except KeyboardInterrupt:
            done = False
        monkeypatch.undo()
        if not done:
            convert.convert(convert.FolderItems(people), part / FINALS[kind], kind, chunk=10)
        assert files(part) == files(tmp_path / "whole")
        if done:
            break
    assert done and allowed


_SLOW = """
import pathlib, sys, time
from experiments.programs import convert

class Slow(convert.FolderItems):
    def encoded(self, index):
        time.sleep(0.02)
        return super().encoded(index)

items = Slow(pathlib.Path(sys.argv[1]))
print("go", flush=True)
convert.convert(items, pathlib.Path(sys.argv[2]), sys.argv[3], chunk=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", FINALS)
def test_killed_at_any_moment_and_run_again(people, tmp_path, kind):
    convert.convert(convert.FolderItems(people), tmp_path / "whole" / FINALS[kind], kind, chunk=2)
    final = tmp_path / "part" / FINALS[kind]
    rng, killed = np.random.default_rng(0), 0
    for _ in range(6):
        command = [sys.executable, "-c", _SLOW, str(people), str(final), kind]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.read(2) == b"go"
        time.sleep(float(rng.uniform(0, 0.4)))
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == 0:
            break
        killed += 1
        if final.exists():
            break
    # On a busy machine every one may have been killed before it wrote anything.
    if not final.exists() or any(final.parent.glob(".*.converting")):
        convert.convert(convert.FolderItems(people), final, kind, chunk=2)
    assert killed and files(tmp_path / "part") == files(tmp_path / "whole")


def test_a_conversion_of_another_source_is_not_gone_on_with(people, tmp_path):
    items = Interrupted(people)
    items.at = 13
    with pytest.raises(KeyboardInterrupt):
        convert.convert(items, tmp_path / "out", "folder", chunk=4)
    (people / "s8" / "0.jpg").write_bytes(jpeg(99))
    with pytest.raises(UserError, match="begun from another source") as caught:
        convert.convert(convert.FolderItems(people), tmp_path / "out", "folder", chunk=4)
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / ".out.converting")
    convert.convert(convert.FolderItems(people), tmp_path / "out", "folder", chunk=4)


def test_names_from_outside_do_not_lead_out_of_the_folder(tmp_path):
    class Hostile:
        labels = np.array([0, 1, 2, 3], np.int32)
        files = []

        def __init__(self, names):
            self.class_names = names

        def encoded(self, index):
            return jpeg(index)

    for number, names in enumerate(
        [["../../a", "b", "c", "d"], ["a", "a", "b", "c"], [".a", "b", "c", "d"], ["/etc/x", "b", "c", ""]]
    ):
        final = tmp_path / str(number) / "out"
        convert.convert(Hostile(names), final, "folder")
        assert sorted(p.name for p in final.iterdir()) == [f"class-{k:07d}" for k in range(4)]
        assert [p.name for p in final.parent.iterdir()] == ["out"]
    with pytest.raises(UserError, match="line breaks"):
        convert.convert(Hostile(["a\nb", "b", "c", "d"]), tmp_path / "x/faces/1.0.0", "tfds")


def test_damaged_records_are_left_out(people, tmp_path, capsys):
    run(people, tmp_path / "rec/train.rec")
    rec = tmp_path / "rec/train.rec"
    whole = bytearray(rec.read_bytes())
    whole[recordio.RecordFile(rec).offsets[5]] ^= 1
    rec.write_bytes(whole)
    capsys.readouterr()
    run(tmp_path / "rec", tmp_path / "out", "--to", "folder")
    assert capsys.readouterr().err.splitlines()[-1] == "left out: 1 damaged records"
    assert len(data.FolderSource(tmp_path / "out", image_size=16)) == 24


def test_a_set_of_too_many_records_for_identities(people, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "EXACT", 20)
    run(people, tmp_path / "rec/train.rec")
    file = recordio.RecordFile(tmp_path / "rec/train.rec")
    assert len(file) == 25 and recordio.unpack(file[0])[0].flag == 0
    assert len(data.RecordIOFaces(tmp_path / "rec")) == 25


def test_mistakes_are_one_line(people, tmp_path, refusal):
    data.write_bin(tmp_path / "lfw.bin", [jpeg(i) for i in range(4)], [True, False])
    (tmp_path / "bad.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (tmp_path / "nobody").mkdir()
    (tmp_path / "pairs/1-same").mkdir(parents=True)
    (tmp_path / "pairs/1-same/0.jpg").write_bytes(jpeg(0))
    (tmp_path / "rubbish.rec").write_bytes(b"rubbish" * 30)
    (tmp_path / "tfds").mkdir()
    (tmp_path / "tfds/dataset_info.json").write_text("{}")
    out = tmp_path / "out"
    for arguments, says in [
        ([], "required"),
        ([people], "required"),
        ([tmp_path / "nothing", out], "nothing is there|there is nothing"),
        ([people, out], "to: "),
        ([people, out, "--to", "zip"], "to: "),
        ([people, out, "--to", "rec"], "target: needs the ending .rec"),
        ([people, tmp_path / "a.bin"], "pairs"),
        ([tmp_path / "lfw.bin", tmp_path / "a.rec"], "pairs"),
        ([tmp_path / "lfw.bin", tmp_path / "a.bin"], "already"),
        ([tmp_path / "bad.bin", out], "path: "),
        ([tmp_path / "pairs", tmp_path / "a.bin"], "two images"),
        ([tmp_path / "pairs", out, "--to", "folder"], "target: "),
        ([tmp_path / "nobody", out, "--to", "tfds"], "root: "),
        ([tmp_path / "rubbish.rec", out, "--to", "tfds"], "path: "),
        ([tmp_path / "tfds", out, "--to", "folder"], "name: "),
        ([people, people, "--to", "folder"], "exists already"),
        ([people, "/proc/nothing/out", "--to", "folder"], "cannot write"),
        ([people, out, "--color"], "color"),
    ]:
        line = refusal(convert.main, arguments)
        assert any(part in line for part in says.split("|")), line
        assert not out.exists() and not (tmp_path / "a.bin").exists() and not (tmp_path / "a.rec").exists()


def test_two_at_once_are_refused(people, tmp_path):
    with convert._working(tmp_path / "out"), pytest.raises(UserError, match="another process"):
        convert.convert(convert.FolderItems(people), tmp_path / "out", "folder")


@pytest.mark.slow
def test_a_program_of_its_own(people, tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.programs.convert",
        str(people),
        str(tmp_path / "a/train.rec"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "train.rec" in done.stdout, done.stderr
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
    assert json.dumps(sorted(os.listdir(tmp_path / "a"))) == '["property", "train.idx", "train.rec"]'


class Named:
    """One image for each name."""

    files = ()

    def __init__(self, names):
        self.class_names, self.labels = names, np.arange(len(names), dtype=np.int32)

    def encoded(self, index):
        return jpeg(index)


@pytest.mark.parametrize("names", [["ä" * 200, "b"], ["0-same", "1-different"]])
def test_names_that_no_folder_can_have_are_known_before_the_first_image(tmp_path, caplog, names):
    convert.convert(Named(names), tmp_path / "out", "folder")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["class-0000000", "class-0000001"]
    assert len(caplog.messages) == 1 and "cannot be the name of a folder here" in caplog.messages[0]


def test_names_that_a_file_system_takes_for_one(tmp_path, monkeypatch):
    mkdir = pathlib.Path.mkdir
    monkeypatch.setattr(
        pathlib.Path, "mkdir", lambda path, *a, **k: mkdir(path.with_name(path.name.lower()), *a, **k)
    )
    convert.convert(Named(["ann", "Ann"]), tmp_path / "out", "folder")
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["class-0000000", "class-0000001"]


@pytest.mark.parametrize("name", [" ", "b ", "b\rx", ""])
def test_names_that_tfds_cannot_hold_leave_nothing_behind(tmp_path, name):
    with pytest.raises(UserError, match=r"^source: TFDS needs names"):
        convert.convert(Named(["a", name]), tmp_path / "x/faces/1.0.0", "tfds")
    assert not list(tmp_path.iterdir())


def test_images_too_large_for_a_record_are_left_out(people, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recordio, "MAX_RECORD", 2000)
    (people / "s8/0.jpg").write_bytes(jpeg(0, size=64))
    run(people, tmp_path / "rec/train.rec")
    assert "1 images too large for a record" in capsys.readouterr().err
    assert len(data.RecordIOFaces(tmp_path / "rec")) == 24


def test_names_that_are_no_utf8(people, tmp_path):
    os.rename(people / "s9", os.fsencode(people) + b"/Andr\xe9")
    names = data.FolderSource(people, image_size=16).class_names
    assert r"Andr\xe9" in names
    for kind, target in (("rec", "rec/train.rec"), ("tfds", "tfds"), ("folder", "folder")):
        run(people, tmp_path / target, "--to", kind)
    assert data.FolderSource(tmp_path / "folder", image_size=16).class_names == names
    assert data.TfdsSource("faces", data_dir=str(tmp_path / "tfds"), image_size=16).class_names == names


def test_what_lies_beside_pairs_is_none(tmp_path, capsys, caplog):
    images, same = [jpeg(i) for i in range(8)], [True, False, True, False]
    data.write_bin(tmp_path / "a.bin", images, same)
    run(tmp_path / "a.bin", tmp_path / "pairs")
    (tmp_path / "pairs/00000-same/._0.jpg").write_bytes(b"of another system")
    (tmp_path / "pairs/lost+found").symlink_to("lost+found")
    (tmp_path / "pairs/run").mkdir()
    (tmp_path / "pairs/run/results.json").write_text('{"metrics": {}}')
    (tmp_path / "pairs/run/roc.png").write_bytes(jpeg(0))
    run(tmp_path / "pairs", tmp_path / "b.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    assert len(caplog.messages) == 2
    shutil.rmtree(tmp_path / "pairs/00001-different")
    with pytest.raises(SystemExit):
        run(tmp_path / "pairs", tmp_path / "c.bin")
    assert "two pairs of one person and two of different people" in capsys.readouterr().err
    assert not (tmp_path / "c.bin").exists()
