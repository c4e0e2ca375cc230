import base64
import builtins
import copyreg
import logging
import os
import pickle
import pickletools
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface import data, metrics
from jaxface.data.sources import packs
from jaxface.data.sources.images import decode_image, encode_image
from jaxface.data.sources.packs import PackSource, Refused, parse_bin, read_bin, write_bin
from jaxface.errors import UserError

IMAGES = [b"\xff\xd8\x00'\"\\\n\r\t\x80a", b"", b"ab\xe9", b"\x00\xff"]
SAME = [True, False]

# pickle.dumps((IMAGES, SAME), protocol) of Python 2.7, protocols 0, 1 and 2.
PYTHON_2 = [
    "KChscDAKUydceGZmXHhkOFx4MDBcJyJcXFxuXHJcdFx4ODBhJwpwMQphUycnCnAyCmFTJ2FiXHhlOScKcDMKYVMnXHgwMFx4ZmYnCnA0CmEobHA1"
    "CkkwMQphSTAwCmF0cDYKLg==",
    "KF1xAChVC//YACciXAoNCYBhcQFVAHECVQNhYulxA1UCAP9xBGVdcQUoSTAxCkkwMApldHEGLg==",
    "gAJdcQAoVQv/2AAnIlwKDQmAYXEBVQBxAlUDYWLpcQNVAgD/cQRlXXEFKIiJZYZxBi4=",
]


def jpeg(number, shape=(112, 112, 3)):
    blocks = np.random.default_rng(number).integers(0, 256, (shape[0] // 2, shape[1] // 2, 3), np.uint8)
    return encode_image(blocks.repeat(2, 0).repeat(2, 1), encoding="jpeg")


def array(entry):
    return np.frombuffer(entry, np.uint8).copy()


ENTRIES = {
    "bytes": lambda entry: entry,
    "array [L]": array,
    "array [L, 1]": lambda entry: array(entry)[:, None],
    "bytes and arrays": lambda entry: entry if len(entry) % 2 else array(entry),
}
LABELS = {
    "list": list,
    "tuple": tuple,
    "numpy scalars": lambda same: [np.bool_(value) for value in same],
    "integers": lambda same: [int(value) for value in same],
    "array of bool": np.array,
    "array of big integers": lambda same: np.array(same).astype(">i4"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("entries", ENTRIES)
@pytest.mark.parametrize("labels", LABELS)
def test_every_protocol_and_kind_of_entry(protocol, entries, labels):
    bins = [ENTRIES[entries](entry) for entry in IMAGES]
    for pack in (tuple, list):
        written = pickle.dumps(pack([bins, LABELS[labels](SAME)]), protocol)
        found, same = parse_bin(written)
        assert found == IMAGES and all(type(entry) is bytes for entry in found)
        assert same.tolist() == SAME and same.dtype == bool
        # numpy 1 had the same functions in numpy.core.
        if protocol < 4:
            assert parse_bin(written.replace(b"numpy._core", b"numpy.core"))[0] == IMAGES
        elif protocol == 4:
            old = written.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
            frame = struct.pack("<Q", len(old) - 11)
            assert parse_bin(old[:3] + frame + old[11:])[0] == IMAGES


@pytest.mark.parametrize("written", PYTHON_2)
def test_python_2(written):
    found, same = parse_bin(base64.b64decode(written))
    assert found == IMAGES and same.tolist() == SAME


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(st.binary(max_size=60), max_size=8), protocol=st.integers(0, 5), seed=st.integers(0, 99)
)
def test_any_bytes_come_back(entries, protocol, seed):
    entries = entries[: len(entries) // 2 * 2]
    same = np.random.default_rng(seed).random(len(entries) // 2) < 0.5
    found, labels = parse_bin(pickle.dumps((entries, same.tolist()), protocol))
    assert found == entries and labels.tolist() == same.tolist()


def test_files(tmp_path):
    write_bin(tmp_path / "new/lfw.bin", IMAGES, np.array(SAME))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["lfw.bin"]
    found, same = read_bin(tmp_path / "new/lfw.bin")
    assert found == IMAGES and same.tolist() == SAME
    bins, labels = pickle.loads(
        (tmp_path / "new/lfw.bin").read_bytes(), encoding="bytes"
    )  # as the public loader
    assert (bins, labels) == (IMAGES, SAME)
    with pytest.raises(ValueError, match="two for each"):
        write_bin(tmp_path / "odd.bin", IMAGES[:3], SAME)
    with pytest.raises(UserError, match="cannot write"):
        write_bin("/proc/nothing/a.bin", IMAGES, SAME)
    for path in (tmp_path / "missing.bin", tmp_path):
        with pytest.raises(UserError, match=r"^path: "):
            read_bin(path)


# Pickles that do something when they are loaded. Each would make the file SENTINEL.


class Runs:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class WithState:
    def __reduce__(self):
        return np.ndarray, ((0,),), {"x": 1}


def instructions(*parts):
    return b"".join(part.encode() if isinstance(part, str) else part for part in parts)


def unicode(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def malicious(sentinel):
    """Name -> a pickle that runs something in pickle.loads."""
    command, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"
    found = {}
    for protocol in range(6):
        found[f"os.system {protocol}"] = pickle.dumps(Runs(os.system, (command,)), protocol)
        found[f"eval {protocol}"] = pickle.dumps(([Runs(builtins.eval, (code,))], [True]), protocol)
        found[f"exec in the labels {protocol}"] = pickle.dumps(
            ([b"", b""], [Runs(builtins.exec, (code,))]), protocol
        )
    found["GLOBAL"] = instructions("cposix\nsystem\n(", unicode(command), "tR.")
    found["GLOBAL, popped"] = instructions("cposix\nsystem\n(", unicode(command), "tR0(lp0\n(lp1\n\x86.")
    found["STACK_GLOBAL"] = instructions(
        b"\x80\x04", unicode("posix"), unicode("system"), b"\x93", unicode(command), b"\x85R."
    )
    found["dotted STACK_GLOBAL"] = instructions(
        b"\x80\x04", unicode("numpy"), unicode("ndarray.__class__.__subclasses__"), b"\x93)R."
    )
    found["INST"] = instructions("(", unicode(command), "iposix\nsystem\n.")
    found["OBJ"] = instructions("(cposix\nsystem\n", unicode(command), "o.")
    found["NEWOBJ"] = instructions(b"\x80\x02cposix\nsystem\n", unicode(command), b"\x85\x81.")
    found["NEWOBJ_EX"] = instructions(b"\x80\x04cposix\nsystem\n", unicode(command), b"\x85}\x92.")
    found["encode as a door"] = instructions("c_codecs\nencode\n(", unicode("x"), unicode("idna"), "tR.")
    found["runpy through numpy"] = instructions("cnumpy.testing\nrunstring\n(", unicode(code), "}tR.")
    found["getattr"] = instructions("c__builtin__\ngetattr\n(cos\npath\n", unicode("system"), "tR.")
    found["ndarray itself"] = pickle.dumps(Runs(np.ndarray, ((10**12,),)), 2)
    found["array of objects"] = pickle.dumps(([np.array([Runs(os.system, (command,))], object)], [True]), 2)
    found["PERSID"] = b"Pposix.system\n."
    found["BINPERSID"] = instructions(unicode("posix.system"), "Q.")
    return found


NAMES = list(malicious("x"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_pack_runs(tmp_path, name):
    sentinel = tmp_path / "SENTINEL"
    (tmp_path / "evil.bin").write_bytes(malicious(sentinel)[name])
    with pytest.raises(UserError, match=r"^path: ") as caught:
        read_bin(tmp_path / "evil.bin")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not sentinel.exists()


def test_the_malicious_packs_are_no_empty_threats(tmp_path):
    ran = 0
    for number, name in enumerate(NAMES):
        sentinel = tmp_path / str(number)
        try:
            if not name.startswith("ndarray"):  # a terabyte
                pickle.loads(malicious(sentinel)[name])
        except Exception:  # those that fail in between
            pass
        ran += sentinel.exists()
    assert ran >= 20


def test_the_extension_registry_is_not_used(tmp_path):
    copyreg.add_extension("posix", "system", 240)
    try:
        written = pickle.dumps(Runs(os.system, (f"touch {tmp_path / 'SENTINEL'}",)), 2)
        assert b"\x82\xf0" in written
        for code in (written, instructions(b"\x83\xf0\0", "."), instructions(b"\x84\xf0\0\0\0", ".")):
            with pytest.raises(Refused):
                parse_bin(code)
    finally:
        copyreg.remove_extension("posix", "system", 240)
    assert not (tmp_path / "SENTINEL").exists()


@pytest.mark.parametrize(
    "pack",
    [
        {"a": 1}, {1, 2}, 3.5, None, b"bytes", "text", ([], []), object, WithState(), np.zeros(3), 10**40,
        ([1, 2], [True]), (["a", "b"], [True]), ([b"", b""], ["yes"]), ([b"", b""], [2]), ([b"", b""], [None]),
        ([b"", b"", b""], [True]), ([b"", b""], [True, False]), ([b""] * 4, [True]), (b"ab", [True]),
        ([np.zeros((2, 3), np.uint8)] * 2, [True]), ([np.zeros((2, 1, 1), np.uint8)] * 2, [True]),
        ([np.zeros(2, np.int8)] * 2, [True]), ([np.zeros(2, np.float32)] * 2, [True]),
        ([np.zeros((), np.uint8)] * 2, [True]), ([np.array("ab")] * 2, [True]),
        ([np.zeros(2, [("a", "u1")])] * 2, [True]), ([np.array([b""], object)] * 2, [True]),
        ([np.datetime64("2020")] * 2, [True]), ([b"", b""], np.ones((1, 1), bool)), ([b"", b""], np.array([2])),
    ],
    ids=lambda pack: repr(pack)[:30],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_other_contents_are_refused(pack, protocol):
    if isinstance(pack, tuple) and pack == ([], []):
        assert parse_bin(pickle.dumps(pack, protocol))[0] == []
        return
    with pytest.raises(Refused) as caught:
        parse_bin(pickle.dumps(pack, protocol))
    assert "\n" not in str(caught.value)


def numpy_array(shape, raw, code="u1"):
    """The instructions that rebuild an array of a claimed shape from the bytes that are there."""
    kind = instructions("cnumpy\ndtype\n(", unicode(code), b"\x89\x88tR")
    state = instructions(
        "(K\x01(", *(b"\x8a\x08" + struct.pack("<q", side) for side in shape), "t", kind, b"\x89", raw, "t"
    )
    head = instructions("cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85", unicode("b"), "tR")
    return head + state + b"b"


BIG = 1 << 40
BOMBS = {
    "a length of 2^40": b"\x80\x04\x8e" + struct.pack("<Q", BIG) + b"abc",
    "a length of 2^63": b"\x80\x05\x96" + struct.pack("<Q", 1 << 63) + b"abc",
    "text of 2^31": b"X\xff\xff\xff\x7fabc",
    "a number of 2^31 bytes": b"\x8b\xff\xff\xff\x7f\1",
    "a frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"].",
    "a memo of 2^32": b"]r\xff\xff\xff\xff.",
    "a reference to nothing": b"j\xff\xff\xff\xff.",
    "an array of 2^40": numpy_array([BIG], b"C\3abc") + b".",
    "an array of 2^80": numpy_array([BIG, BIG], b"C\3abc") + b".",
    "an array of -1": numpy_array([-1], b"C\3abc") + b".",
    "an empty array with a side of 2^40": instructions("](", numpy_array([0, BIG], b"C\0"), "2e](", b"\x88e\x86."),
    "a dtype of 2^30 bytes": numpy_array([1], b"C\1a", "S1073741824") + b".",
    "reconstructed large": instructions(
        "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n", b"\x8a\x08", struct.pack("<q", BIG), b"\x85C\1btR."
    ),
    "_frombuffer of 2^40": instructions(
        "cnumpy._core.numeric\n_frombuffer\n(C\1acnumpy\ndtype\n", unicode("u1"), b"\x85R\x8a\x08", struct.pack("<q", BIG),
        b"\x85", unicode("C"), "tR.",
    ),
    "lists inside lists": b"]" * 300_000 + b"a" * 299_999 + b".",
    "tuples inside tuples": b")" + b"\x85" * 500_000 + b".",
    "marks": b"(" * 500_000 + b".",
    "a list of itself": b"]2a.",
    "doubling": b"]q\0" + b"(h\0h\0lq\0" * 60 + b".",
    "one text encoded again and again": instructions(
        unicode("a" * 100_000), "q\0", "0]", instructions("c_codecs\nencode\n(h\0", unicode("latin1"), "tRa") * 2000, "."
    ),
    "one image many times": instructions("](C\3abcq\1", b"h\1" * 99_999, "e](", b"\x88" * 99_999, b"e\x86."),
    "a long line": b"I" + b"1" * 10**6 + b"\n.",
    "a long name": b"c" + b"n" * 10**6 + b"\nx\n.",
    "only opcodes": b"N0" * 3_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_number_in_a_pack_takes_memory_or_time(name):
    bomb = BOMBS[name]
    began = time.process_time()
    tracemalloc.start() if name != "only opcodes" else None  # which it makes slow
    try:
        with pytest.raises(Refused):
            parse_bin(bomb)
        peak = tracemalloc.get_traced_memory()[1] if tracemalloc.is_tracing() else 0
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(bomb) + 1_000_000
    assert time.process_time() - began < 20


def test_three_thousand_damaged_packs():
    rng = np.random.default_rng(0)
    bins = [jpeg(i, (8, 8, 3))[:40] for i in range(4)]
    written = [pickle.dumps((bins, SAME), p) for p in range(6)]
    written += [pickle.dumps(([array(b) for b in bins], np.array(SAME)), p) for p in range(6)]
    refused = 0
    for case in range(3000):
        changed = bytearray(written[case % len(written)])
        for _ in range(int(rng.integers(1, 5))):
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        if case % 5 == 0:
            del changed[int(rng.integers(len(changed))) :]
        try:
            images, same = parse_bin(bytes(changed))
            assert len(images) == 2 * len(same)
        except Refused as error:
            assert "\n" not in str(error)
            refused += 1
    assert 1000 < refused < 3000


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes])
        | st.binary(max_size=3),
        max_size=40,
    ).map(b"".join)
)
def test_any_instructions_are_refused_or_make_a_pack(code):
    try:
        images, same = parse_bin(code)
    except Refused:
        return
    assert len(images) == 2 * len(same)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "lfw.bin"
    images = [jpeg(i // 2 if i % 4 < 2 else i) for i in range(80)]  # genuine pairs are one picture twice
    write_bin(path, images, np.arange(40) % 2 == 0)
    return path


def test_a_source_with_its_official_pairs(pack):
    source = PackSource(pack)
    assert isinstance(source, data.Source) and len(source) == 80 and source.image_shape == (112, 112, 3)
    assert source[3]["image"].shape == (112, 112, 3) and source[3]["label"] == source.labels[3]
    np.testing.assert_array_equal(source[3]["image"], decode_image(read_bin(pack)[0][3]))
    np.testing.assert_array_equal(source.pairs.indices, np.arange(80).reshape(40, 2))
    np.testing.assert_array_equal(source.pairs.same, np.arange(40) % 2 == 0)
    np.testing.assert_array_equal(source.labels[0::2] == source.labels[1::2], source.pairs.same)
    assert source.pairs.folds == 10 and len(source.class_names) > source.labels.max()
    small = PackSource(pack, image_size=32)
    assert small[0]["image"].shape == small.image_shape == (32, 32, 3)
    pixels = np.stack([small[i]["image"].ravel() for i in range(80)]).astype(np.float32)
    report = metrics.verify(pixels - pixels.mean(0), None, pairs=small.pairs)
    assert report["verification/accuracy"] > 0.9
    assert data.load_all(data.Bin(str(pack)), image_size=32).pairs.same.sum() == 20
    with pytest.raises(UserError, match=r"^data: "):
        data.load(data.Bin(str(pack)))


def test_the_short_side_is_resized(tmp_path):
    images = [jpeg(i, (60, 90, 3)) for i in range(8)]
    write_bin(tmp_path / "a.bin", images, [True, False] * 2)
    expected = data.fit_square(decode_image(images[1]), 112, fit="crop")
    np.testing.assert_array_equal(PackSource(tmp_path / "a.bin")[1]["image"], expected)


def test_pairs_that_cannot_be_read_are_left_out(pack, tmp_path, caplog):
    images, same = read_bin(pack)
    images[5], images[6], images[7] = b"rubbish", images[6][:100], b""
    write_bin(tmp_path / "damaged.bin", images, same)
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = PackSource(tmp_path / "damaged.bin", image_size=16)
    assert len(caplog.records) == 1 and "2 of the 40 pairs" in caplog.records[0].getMessage()
    assert source.corrupt == 3 and len(source) == 76
    np.testing.assert_array_equal(source.pairs.same, np.delete(same, [2, 3]))
    np.testing.assert_array_equal(source[4]["image"], PackSource(pack, image_size=16)[8]["image"])
    write_bin(tmp_path / "none.bin", [b"x"] * 8, [True, False] * 2)
    with pytest.raises(UserError, match="two genuine"):
        PackSource(tmp_path / "none.bin")


def test_a_training_set_is_verified_on_a_pack(pack, tmp_path):
    with data.RecordWriter(tmp_path / "train.rec") as writer:
        for number in range(12):
            writer.write(number // 3, jpeg(number))
    spec = data.RecordIO(str(tmp_path), verification=str(pack))
    split = data.load(spec, image_size=24)
    assert len(split.train) == 12 and split.held_out.pairs.folds == 10 and split.protocol == "verification"
    assert split.held_out.image_shape == split.train.image_shape == (24, 24, 3)
    split = data.load(data.RecordIO(str(tmp_path / "train.rec"), held_out=0.5), image_size=24)
    assert len(split.train) == len(split.held_out) == 6 and split.name == f"recordio {tmp_path.name}"


def test_what_could_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    images, same = [bytes([k % 256]) * (k % 300) for k in range(4000)], [k % 2 == 0 for k in range(2000)]
    path = tmp_path / "a.bin"
    monkeypatch.setattr(packs, "MAX_STEPS", 4 * len(images) + 2 * len(same))
    write_bin(path, images, same)
    found, labels = read_bin(path)
    assert found == images and labels.tolist() == same
    monkeypatch.setattr(packs, "MAX_PACK", path.stat().st_size)
    write_bin(path, images, same)
    for name, limit in (("MAX_PACK", path.stat().st_size - 1), ("MAX_STEPS", packs.MAX_STEPS - 1)):
        with (
            monkeypatch.context() as patch,
            pytest.raises(UserError, match=r"^path: a pack that can be read"),
        ):
            patch.setattr(packs, name, limit)
            write_bin(tmp_path / "b.bin", images, same)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
