import numpy as np
import pytest

from jaxface import data
from jaxface.data.sources.voc import parse_xml
from jaxface.errors import UserError


def thing(name, box, difficult=0):
    edges = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"


def document(*things, file="a.jpg"):
    size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
    return f"<annotation><filename>{file}</filename>{size}{''.join(things)}</annotation>"


@pytest.fixture
def folder(tmp_path, picture):
    for name in ("000001", "000002", "000010"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        path = tmp_path / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            document(thing("dog", (11, 6, 30, 15)), thing("person", (1, 1, 60, 40), 1), file=f"{name}.jpg")
        )
    for part, names in (("trainval", ("000001", "000010")), ("test", ("000002",))):
        path = tmp_path / "ImageSets" / "Main" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return tmp_path


def test_pixels_from_one_become_edges_from_zero(folder):
    split = data.load(data.Voc(str(folder)), image_size=60)
    assert split.train.record_names == ["000001", "000010"] and split.held_out.record_names == ["000002"]
    truth = split.train.ground_truth(0)
    np.testing.assert_array_equal(truth["boxes"], [[5, 10, 15, 30], [0, 0, 40, 60]])
    assert truth["difficult"].tolist() == [False, True] and not truth["crowd"].any()
    assert [split.train.class_names[k] for k in truth["labels"]] == ["dog", "person"]
    assert split.train[0]["box_crowd"][:2].tolist() == [False, True]


def test_a_folder_without_parts_is_split(folder):
    import shutil

    shutil.rmtree(folder / "ImageSets")
    split = data.load(data.Voc(str(folder), held_out=0.4, categories=("dog",)), image_size=60)
    assert len(split.train) == 2 and len(split.held_out) == 1
    assert split.train.ground_truth(0)["labels"].tolist() == [0]


def test_boxes_and_names_that_are_none_are_counted(folder):
    (folder / "Annotations" / "000001.xml").write_text(
        document(
            thing("dog", (11, 6, "x", 15)), thing("unicorn", (1, 1, 5, 5)), thing("dog", (30, 6, 11, 15)),
            "<object><name>dog</name></object>", thing("dog", (0, 0, 5, 5)),
        )
    )  # fmt: skip
    source = data.voc(folder, "trainval", image_size=60)
    assert source.dropped == {"not finite": 2, "of an unknown class": 1, "degenerate": 1}
    np.testing.assert_array_equal(source.ground_truth(0)["boxes"], [[0, 0, 5, 5]])


SECRET = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'
)
LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SECRET, "it declares a document type"),
        (LAUGHS, "it declares a document type"),
        ("<annotation>&x;</annotation>", "undefined entity"),
        ("<html></html>", "its root is <html>"),
        ("", "no element found"),
        ("not xml", "syntax error"),
        ("<annotation>", "no element found"),
    ],
)
def test_another_file_gets_one_line(text, words, folder):
    (folder / "Annotations" / "000001.xml").write_text(text)
    with pytest.raises(
        UserError, match=rf"^root: needs VOC's <annotation>, .*000001.xml has none: .*{words}"
    ) as refused:
        data.load(data.Voc(str(folder)), image_size=60)
    assert "\n" not in str(refused.value) and "root:x" not in str(refused.value)


def test_missing_files_get_one_line(folder):
    with pytest.raises(UserError, match=r"^part: cannot read .*nothing.txt"):
        data.voc(folder, "nothing", image_size=60)
    with pytest.raises(UserError, match=r"^root: needs a folder with Annotations"):
        data.voc(folder / "nowhere", image_size=60)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("../../x\n")
    with pytest.raises(UserError, match=r"^part: needs names of images, got '../../x'"):
        data.voc(folder, "test", image_size=60)
    with pytest.raises(UserError, match=r"^categories: needs at least one"):
        data.voc(folder, categories=(), image_size=60)


def test_plain_documents_are_read_whole():
    root = parse_xml(b'<?xml version="1.0" encoding="latin-1"?><a b="c">x<d>\xe9</d>y</a>')
    assert root.get("b") == "c" and root.findtext("d") == "é" and root[0].tail == "y"


def test_an_object_store(folder, same_elsewhere):
    same_elsewhere(lambda root: data.Voc(root).source(image_size=16, seed=0), folder)
    assert data.Voc("objects://bucket/set").title == "voc set"
