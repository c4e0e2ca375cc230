import io
import logging
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxface.data import faces_builder
from jaxface.data.faces_builder import Faces, build_faces
from jaxface.data.sources.bundled import ArraySource, digits
from jaxface.data.sources.folder import FolderSource
from jaxface.data.sources.images import CorruptImage, decode_image
from jaxface.data.sources.source import Source, Subset
from jaxface.data.sources.tfds_source import TfdsSource, class_label
from jaxface.errors import UserError


class Rich:
    """Records with every field that a batch may have."""

    labels = (np.arange(24) % 3).astype(np.int32)
    class_names = ("ann", "bob", "cyd")
    image_shape = (20, 20, 3)

    def __len__(self):
        return 24

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return {
            "image": rng.integers(0, 256, (20, 20, 3), np.uint8),
            "label": self.labels[index],
            "landmarks": rng.uniform(0, 20, (5, 2)).astype(np.float32),
            "boxes": rng.uniform(0, 19, (1, 4)).astype(np.float32),
            "depth": rng.random((20, 20)).astype(np.float32),
            "spoof": np.int32(index % 2),
            "expression": np.int32(index % 7),
            "group": np.int32(index % 6),
        }


class Failing(Rich):
    """Stops in the middle, as a user who presses Ctrl-C does."""

    def __getitem__(self, index):
        if index == 15:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    assert build_faces(Rich(), directory) == directory / "faces" / "1.0.0"
    return directory


def test_round_trip_is_exact_and_in_order(rich):
    source = TfdsSource("faces", data_dir=str(rich), image_size=20)
    assert isinstance(source, Source) and len(source) == 24 and source.class_names == list(Rich.class_names)
    np.testing.assert_array_equal(source.labels, Rich.labels)
    assert source.image_shape == source[0]["image"].shape
    for index in (0, 7, 23):
        found, stored = source[index], Rich()[index]
        assert found.keys() == stored.keys()
        for name, value in stored.items():
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype
    assert "tensorflow" not in sys.modules


def test_stored_are_encoded_bytes_that_tfds_alone_reads(rich):
    records = tfds.builder("faces", data_dir=rich).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert records[0]["image"][:4] == b"\x89PNG"
    np.testing.assert_array_equal(decode_image(records[3]["image"]), Rich()[3]["image"])
    decoded = tfds.builder("faces", data_dir=rich).as_data_source("train")
    np.testing.assert_array_equal(decoded[3]["image"], Rich()[3]["image"])
    assert "tensorflow" not in sys.modules


def test_splits_folders_and_other_sizes(rich):
    part = TfdsSource("faces", data_dir=str(rich), image_size=20, split="train[:50%]")
    assert len(part) == 12
    np.testing.assert_array_equal(part[5]["image"], Rich()[5]["image"])
    by_folder = TfdsSource("faces/1.0.0", data_dir=str(rich), image_size=40)
    record = by_folder[2]
    assert record["image"].shape == (40, 40, 3) and record["depth"].shape == (40, 40)
    np.testing.assert_allclose(record["landmarks"], Rich()[2]["landmarks"] * 2 + 0.5, atol=1e-4)
    thawed = pickle.loads(pickle.dumps(by_folder))
    np.testing.assert_array_equal(thawed[2]["image"], record["image"])


def test_jpeg_and_gray(tmp_path):
    few = Subset(digits(), np.arange(12))
    build_faces(few, tmp_path / "gray")
    source = TfdsSource("faces", data_dir=str(tmp_path / "gray"), image_size=8)
    np.testing.assert_array_equal(source[4]["image"][..., :1], few[4]["image"])
    smooth = np.broadcast_to(np.arange(0, 200, 10, np.uint8)[:, None, None], (4, 20, 20, 3)).copy()
    build_faces(
        ArraySource(smooth, np.arange(4) % 2, ["a", "b"]), tmp_path / "jpeg", encoding="jpeg", quality=90
    )
    source = TfdsSource("faces", data_dir=str(tmp_path / "jpeg"), image_size=20)
    assert np.abs(source[0]["image"].astype(int) - smooth[0]).mean() < 3


def test_a_folder_becomes_a_data_set(faces_folder, tmp_path):
    folder = FolderSource(faces_folder, image_size=16)
    build_faces(folder, tmp_path / "built")
    source = TfdsSource("faces", data_dir=str(tmp_path / "built"), image_size=16)
    assert source.class_names == folder.class_names
    np.testing.assert_array_equal(source.labels, folder.labels)
    np.testing.assert_array_equal(source[11]["image"], folder[11]["image"])


def test_an_interrupted_build_leaves_nothing_that_passes_for_whole(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_faces(Failing(), tmp_path)
    assert not list(tmp_path.rglob("dataset_info.json")) and not (tmp_path / "faces" / "1.0.0").exists()
    with pytest.raises(UserError, match=r"^name: "):
        TfdsSource("faces", data_dir=str(tmp_path), image_size=20)
    build_faces(Rich(), tmp_path)  # and does not stand in the way of the next one
    assert len(TfdsSource("faces", data_dir=str(tmp_path), image_size=20)) == 24
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faces"]


_KILLED = """
import os, pathlib, sys
import numpy as np
from tensorflow_datasets.core.utils import shard_utils
from jaxface.data.sources.bundled import ArraySource
from jaxface.data.faces_builder import build_faces

shard_utils.ShardConfig.get_number_shards = lambda *_: 4
source = ArraySource(np.arange(24 * 192).reshape(24, 8, 8, 3).astype(np.uint8), np.arange(24) % 2, ["a", "b"])
CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree")

def build(directory, at):
    steps = iter(range(10**6))
    def count(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and str(directory) in str(arguments[0]) and next(steps) == at:
            os._exit(9)
    sys.addaudithook(count)
    build_faces(source, directory)

for at in range(1000):
    child = os.fork()
    if child == 0:
        try:
            build(pathlib.Path(sys.argv[1]) / str(at), at)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(sys.argv[1] + "/statuses", "a") as file:
        file.write(f"{status}\\n")
    if status != 9:
        break
"""


@pytest.mark.slow
def test_a_build_killed_before_any_change_to_the_disk_leaves_nothing_that_passes_for_whole(tmp_path):
    """Killed at the k-th file opened for writing, renamed, made or removed, for every k; four shards."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path)], env=os.environ, capture_output=True, text=True
    )
    statuses = (tmp_path / "statuses").read_text().split()
    assert statuses.pop() == "0" and set(statuses) == {"9"}, done.stderr[-2000:]
    whole = [
        len(list((tmp_path / str(at)).glob("faces/1.0.0/*array_record*"))) for at in range(len(statuses))
    ]
    assert len(statuses) > 10 and set(whole) == {0, 4} and whole == sorted(whole)
    assert (
        max(len(list(tmp_path.glob(f"{at}/faces/*incomplete*/*array_record*"))) for at in range(len(whole)))
        > 1
    )
    for at, shards in enumerate(whole):
        if shards:
            assert len(TfdsSource("faces", data_dir=str(tmp_path / str(at)), image_size=8)) == 24
        else:
            with pytest.raises(UserError, match=r"^name: "):
                TfdsSource("faces", data_dir=str(tmp_path / str(at)), image_size=8)
    for at in (0, len(whole) // 2, whole.count(0) - 1):  # and it does not stand in the way of the next one
        build_faces(Rich(), tmp_path / str(at))
        assert len(TfdsSource("faces", data_dir=str(tmp_path / str(at)), image_size=20)) == 24


def test_user_mistakes_are_one_line(rich, tmp_path):
    for says, wrong in [
        ("^name: ", dict(name="no_such_faces")),
        ("^name: .*array_record", dict(name="mnist")),
        ("^split: ", dict(split="validation")),
        ("^image: .*it has", dict(image="picture")),
        ("^label: .*it has", dict(label="person")),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            TfdsSource(**{"name": "faces", "data_dir": str(rich), "image_size": 20, **wrong})
        assert "\n" not in str(caught.value)
    for says, call in [
        ("exists already", lambda: build_faces(Rich(), rich)),
        ("cannot write", lambda: build_faces(Rich(), "/proc/nothing")),
        ("^quality: ", lambda: build_faces(Rich(), tmp_path, quality=0)),
        (
            "^source: ",
            lambda: Faces(data_dir=tmp_path / "x").download_and_prepare(download_dir=str(tmp_path)),
        ),
    ]:
        with pytest.raises(UserError, match=says):
            call()


class Damaged(Faces):
    """The builder with some images that are not images."""

    name = "damaged"

    def _generate_examples(self):
        for index, example in super()._generate_examples():
            if index in (4, 7) or example["label"] == 2:
                example["image"] = io.BytesIO(b"\x89PNG rubbish")
            yield index, example


def test_damaged_records_are_replaced_by_their_class(tmp_path, caplog):
    Damaged(source=Rich(), data_dir=tmp_path).download_and_prepare(download_dir=str(tmp_path / "d"))
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = TfdsSource("damaged", data_dir=str(tmp_path), image_size=20)
        assert len(source) == 16 and sorted(set(source.labels.tolist())) == [0, 1]
        kept = np.flatnonzero(Rich.labels != 2)
        caplog.clear()
        for index, stored in enumerate(kept):
            expected = {4: 10, 7: 10}.get(int(stored), int(stored))  # of class 1: 1, 4, 7, 10, ...
            np.testing.assert_array_equal(source[index]["image"], Rich()[expected]["image"])
            assert source[index]["label"] == Rich.labels[stored]
    assert source.corrupt == 2 and len(caplog.records) == 1
    with pytest.raises(CorruptImage):
        decode_image(b"\x89PNG rubbish")


def test_a_program_that_reads_imports_no_tensorflow(rich):
    code = (
        "import sys\n"
        "from jaxface.data.sources.tfds_source import TfdsSource\n"
        f"source = TfdsSource('faces', data_dir={str(rich)!r}, image_size=20)\n"
        "print(len(source), source[3]['image'].shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "24 (20, 20, 3) False", done.stderr[-500:]


def test_the_command(faces_folder, tmp_path, monkeypatch, capsys):
    def command(root):
        return [
            "faces_builder",
            "--directory",
            str(tmp_path / "out"),
            "--image-size",
            "16",
            "data:folder",
            "--data.root",
            root,
        ]

    monkeypatch.setattr(sys, "argv", command(str(faces_folder)))
    faces_builder.main()
    assert len(TfdsSource("faces", data_dir=str(tmp_path / "out"), image_size=16)) == 30
    for root, says in [(str(faces_folder), "exists already"), (str(tmp_path / "none"), "root: ")]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", command(root))
        with pytest.raises(SystemExit) as caught:
            faces_builder.main()
        shown = capsys.readouterr().err.strip()
        assert caught.value.code == 2 and says in shown and "\n" not in shown


def test_names_of_classes_are_those_that_tfds_reads_back(tmp_path):
    """The rule is TFDS': each name is written and read by TFDS itself, beside two plain ones."""
    letters = [
        "\n",
        "\r",
        "\t",
        " ",
        "\x0b",
        "\x1c",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
        "\ufeff",
        "é",
        "\u200c",
    ]
    for name in ["", "bob", *(f.format(x) for x in letters for f in ("{}", "{}b", "b{}", "b{}b"))]:
        names = ["ann", name, "zoe"]
        tfds.features.ClassLabel(names=names).save_metadata(tmp_path, "label")
        read = tfds.features.ClassLabel()
        try:
            read.load_metadata(tmp_path, "label")
            same = read.names == names
        except ValueError:  # two lines that are alike
            same = False
        try:
            accepted = class_label(names).names == names
        except UserError as error:
            accepted = False
            assert "\n" not in str(error)
        assert accepted == same, repr(name)
    for names in (["a", "a"], ["a", os.fsdecode(b"\xe9")]):
        with pytest.raises(UserError, match=r"^source: TFDS needs"):
            class_label(names)


def test_a_source_with_impossible_names_is_refused_before_anything_is_written(tmp_path):
    source = ArraySource(np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), ["ann", "ann "])
    with pytest.raises(UserError, match=r"blanks at their ends, got 'ann '$"):
        build_faces(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
