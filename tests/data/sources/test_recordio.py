import logging
import os
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface import data
from jaxface.data.pipeline.batches import batches
from jaxface.data.sources import recordio
from jaxface.data.sources.images import MAX_SIDE, decode_image, encode_image
from jaxface.data.sources.recordio import (
    MAGIC,
    CorruptRecord,
    IRHeader,
    RecordFile,
    RecordIOFaces,
    RecordWriter,
    decode_record,
    encode_record,
    pack,
    unpack,
    write_record,
)
from jaxface.errors import UserError


def jpeg(number, size=16):
    """A small JPEG whose mean color says its number."""
    noise = np.random.default_rng(number).integers(0, 20, (size, size, 3))
    return encode_image((noise + 8 * number % 200).astype(np.uint8), encoding="jpeg")


def write_set(folder, people=4, each=5, *, identities=True, images=None):
    """A training set; returns the encoded images in its order."""
    images = images or [jpeg(i) for i in range(people * each)]
    with RecordWriter(folder / "train.rec", identities=identities) as writer:
        for number, image in enumerate(images):
            writer.write(number // each, image)
    return images


@pytest.fixture
def faces(tmp_path):
    write_set(tmp_path)
    return tmp_path


def test_record_with_a_header_byte_for_byte():
    record = encode_record(pack(IRHeader(0, 7.0, 5, 0), b"\xff\xd8\xff"))
    assert len(record) == 36 and record == bytes.fromhex(
        "0a23d7ce 1b000000 00000000 0000e040 0500000000000000 0000000000000000 ffd8ff 00"
    )
    assert unpack(decode_record(record)) == (IRHeader(0, 7.0, 5, 0), b"\xff\xd8\xff")
    header = encode_record(pack(IRHeader(2, (11.0, 14.0), 0, 0)))
    assert len(header) == 40 and header == bytes.fromhex(
        "0a23d7ce 20000000 02000000 00000000" + "00" * 16 + "00003041 00006041"
    )
    assert unpack(decode_record(header)) == (IRHeader(2, (11.0, 14.0), 0, 0), b"")


@pytest.mark.parametrize(
    "payload, record",
    [
        (b"ABCD" + MAGIC + b"EF", "0a23d7ce 04000020 41424344 0a23d7ce 02000060 4546 0000"),
        (MAGIC + b"EF", "0a23d7ce 00000020 0a23d7ce 02000060 45460000"),
        (b"AB" + MAGIC + b"CD", "0a23d7ce 08000000 4142 0a23d7ce 4344"),
        (b"", "0a23d7ce 00000000"),
        (MAGIC * 2, "0a23d7ce 00000020 0a23d7ce 00000040 0a23d7ce 00000060"),
    ],
)
def test_magics_in_the_data_byte_for_byte(payload, record):
    assert encode_record(payload) == bytes.fromhex(record)
    assert decode_record(bytes.fromhex(record)) == payload


PAYLOADS = st.lists(
    st.sampled_from([MAGIC, MAGIC[:2], MAGIC[2:], b"\x0a", b"ABCD", b"x"]) | st.binary(max_size=9),
    max_size=12,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=5), drop_index=st.booleans())
def test_any_payloads_come_back(tmp_path_factory, payloads, drop_index):
    path = tmp_path_factory.mktemp("any") / "a.rec"
    with path.open("wb") as rec, path.with_suffix(".idx").open("wb") as idx:
        for key, payload in enumerate(payloads):
            write_record(rec, idx, 3 * key, payload)
    if drop_index:
        path.with_suffix(".idx").unlink()
    file = RecordFile(path)
    assert [file[i] for i in range(len(file))] == payloads
    assert file.scanned == drop_index and file.damaged == 0
    assert file.keys.tolist() == [key * (1 if drop_index else 3) for key in range(len(payloads))]
    offset, data = 0, path.read_bytes()
    for payload in payloads:
        assert data[offset:].startswith(encode_record(payload))
        assert decode_record(data, offset) == payload
        offset += len(encode_record(payload))
    assert offset == len(data)


@settings(max_examples=100, deadline=None)
@given(
    labels=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    scalar=st.booleans(),
    numbers=st.tuples(*[st.integers(0, 2**64 - 1)] * 2),
    image=st.binary(max_size=40),
)
def test_headers_come_back(labels, scalar, numbers, image):
    scalar = scalar or not labels
    label = (labels or [0.5])[0] if scalar else tuple(labels)
    header = IRHeader(0 if scalar else len(labels), label, *numbers)
    assert unpack(pack(header, image)) == (header, image)


def test_too_large_to_be_written():
    for payload in (bytes(recordio.MAX_RECORD + 1), MAGIC * (recordio.MAX_PARTS + 1)):
        with pytest.raises(ValueError, match="payload"):
            encode_record(payload)


GOOD = encode_record(b"ABCD" + MAGIC + b"EFGH" + MAGIC + b"IJ")


@pytest.mark.parametrize(
    "record, says",
    [
        (b"", "truncated"),
        (b"\x0a\x23", "truncated"),
        (b"\x0b" + GOOD[1:], "wrong magic"),
        (GOOD[:-4], "truncated"),
        (GOOD[:12], "truncated"),
        (GOOD[:7] + b"\x60" + GOOD[8:], "out of turn"),  # begins with a last part
        (GOOD[:7] + b"\x40" + GOOD[8:], "out of turn"),
        (GOOD[:7] + b"\x80" + GOOD[8:], "out of turn"),
        (GOOD[:19] + b"\x20" + GOOD[20:], "out of turn"),  # a first part again
        (GOOD[:4] + b"\x03" + GOOD[5:], "not the last"),
        (MAGIC + b"\xff\xff\xff\x1f" + bytes(64), "more than"),
        (MAGIC + b"\xff\xff\xff\x03" + bytes(64), "truncated"),
        ((MAGIC + b"\0\0\0\x20") + (MAGIC + b"\0\0\0\x40") * (recordio.MAX_PARTS + 5), "parts"),
    ],
)
def test_damaged_records_are_one_kind_of_error(record, says, tmp_path):
    with pytest.raises(CorruptRecord, match=says) as caught:
        decode_record(record)
    assert "\n" not in str(caught.value)
    (tmp_path / "a.rec").write_bytes(record + bytes(-len(record) % 4) + encode_record(b"good"))
    file = RecordFile(tmp_path / "a.rec")
    assert file[len(file) - 1] == b"good"
    with pytest.raises(CorruptRecord):
        decode_record(record, 10**12)
    with pytest.raises(CorruptRecord):
        decode_record(record, -4)


def test_headers_that_claim_too_much():
    for payload in (b"", b"x" * 23, pack(IRHeader(0, 1.0, 2, 3))[:-1], b"\xff" * 24, b"\2\0\0\0" + bytes(24)):
        with pytest.raises(CorruptRecord):
            unpack(payload)


@pytest.mark.parametrize("identities", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_a_set_is_read_back(tmp_path, identities, index):
    images = write_set(tmp_path, identities=identities)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["property", "train.idx", "train.rec"]
    assert (tmp_path / "property").read_text() == "4,16,16\n"
    if not index:
        (tmp_path / "train.idx").unlink()
    source = RecordIOFaces(tmp_path)
    assert isinstance(source, data.Source) and source.image_shape == (16, 16, 3) and len(source) == 20
    np.testing.assert_array_equal(source.labels, np.arange(20) // 5)
    assert source.labels.dtype == np.int32 and source.class_names == ["0", "1", "2", "3"]
    assert source.left_out == {} and source.corrupt == 0
    for number, image in enumerate(images):
        record = source[number]
        assert source.encoded(number) == image and record["label"] == number // 5
        np.testing.assert_array_equal(record["image"], decode_image(image))
    assert RecordIOFaces(tmp_path / "train.rec", image_size=9)[3]["image"].shape == (9, 9, 3)
    with pytest.raises(IndexError):
        source[20]


def test_the_layout_of_insightface(faces):
    file = RecordFile(faces / "train.rec")
    assert unpack(file[0]) == (IRHeader(2, (21.0, 25.0), 0, 0), b"")
    assert unpack(file[6])[0] == IRHeader(0, 1.0, 6, 0)
    assert [unpack(file[k])[0].label for k in range(21, 25)] == [
        (1.0, 6.0),
        (6.0, 11.0),
        (11.0, 16.0),
        (16.0, 21.0),
    ]
    lines = (faces / "train.idx").read_text().splitlines()
    assert len(lines) == 25 and lines[:2] == ["0\t0", "1\t40"]


def test_labels_come_from_the_identities_without_reading_the_images(faces, monkeypatch):
    read = []
    header = RecordFile.header
    monkeypatch.setattr(RecordFile, "header", lambda self, i: read.append(i) or header(self, i))
    RecordIOFaces(faces)
    assert len(read) == 1 + 2 * 4  # record 0, and for each identity its record and its first image


def test_keys_in_any_order_and_labels_that_are_vectors(tmp_path):
    images = [jpeg(i) for i in range(6)]
    payloads = {
        9 * i: pack(IRHeader(2, (float(i % 3 * 7), 0.25), i, 0), image) for i, image in enumerate(images)
    }
    with (tmp_path / "a.rec").open("wb") as rec, (tmp_path / "a.idx").open("wb") as idx:
        for key in (9, 0, 45, 18, 36, 27):
            write_record(rec, idx, key, payloads[key])
    source = RecordIOFaces(
        tmp_path
    )  # the only .rec of the folder; the keys name no first record without an image
    assert source.class_names == ["0", "7", "14"]
    assert [source.encoded(i) for i in range(6)] == [images[k] for k in (1, 0, 5, 2, 4, 3)]
    np.testing.assert_array_equal(source.labels, [1, 0, 2, 2, 1, 0])


def test_processes_threads_and_pickle(faces):
    source = RecordIOFaces(faces)
    expected = [source[i]["image"] for i in range(20)]
    thawed = pickle.loads(pickle.dumps(source))
    found = [None] * 20

    def read(start):
        for i in range(start, 20, 4):
            found[i] = thawed[i]["image"]

    threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    np.testing.assert_array_equal(found, expected)
    child = os.fork()  # the file descriptor is shared: reads must not move it
    if not child:
        ok = all((source[i]["image"] == expected[i]).all() for i in range(20) for _ in range(20))
        os._exit(0 if ok else 1)
    assert all((source[i]["image"] == expected[i]).all() for i in range(20) for _ in range(20))
    assert os.waitpid(child, 0)[1] == 0


def damage(path, key, change):
    """Changes the bytes of a record in place; `change` takes and returns them."""
    file = RecordFile(path)
    start = int(file.offsets[file.keys == key][0])
    later = file.offsets[file.offsets > start]
    end = int(later.min()) if len(later) else path.stat().st_size
    whole = bytearray(path.read_bytes())
    changed = change(bytes(whole[start:end]))
    assert len(changed) == end - start
    whole[start:end] = changed
    path.write_bytes(whole)


def wrong_magic(record):
    return b"\0" + record[1:]


def wrong_length(record):
    return record[:4] + b"\xff\xff\xff\x02" + record[8:]


def short_length(record):
    return record[:4] + b"\x28\0\0\0" + record[8:]


def no_image(record):
    return record[:32] + bytes(len(record) - 32)


def absurd_size(record):
    at = record.index(b"\xff\xc0")
    return record[: at + 5] + b"\xea\x60\xea\x60" + record[at + 9 :]


def another_label(record):
    return record[:12] + np.float32(3).tobytes() + record[16:]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    "change", [wrong_magic, wrong_length, short_length, no_image, absurd_size, another_label]
)
def test_damaged_records_are_replaced_by_their_class(faces, change, index, caplog):
    good = RecordIOFaces(faces)
    expected = [good[i]["image"] for i in range(20)]
    damage(faces / "train.rec", 8, change)  # position 7, class 1
    damage(faces / "train.rec", 10, change)  # position 9, the last of class 1
    if not index:
        (faces / "train.idx").unlink()
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = RecordIOFaces(faces)
        records = [source[i] for i in range(len(source))]
    if index:  # every record keeps its place, and the next of its class stands in
        np.testing.assert_array_equal(source.labels, np.arange(20) // 5)
        assert source.corrupt == 2 and len(caplog.records) == 1  # reported once
        for position, record in enumerate(records):
            stands_in = {7: 8, 9: 5}.get(position, position)
            np.testing.assert_array_equal(record["image"], expected[stands_in])
            assert record["label"] == position // 5
    # Without an index the label in a header is all there is; no record lies about one that it does not have.
    labels = [r["label"] for r in records]
    for label, record in zip(labels, records, strict=True):
        alike = [i for i in range(20) if (expected[i] == record["image"]).all()]
        assert alike and (change is another_label or alike[0] // 5 == int(source.class_names[label]))
    again = RecordIOFaces(faces)
    for i in reversed(range(len(again))):  # whatever the order of reading
        np.testing.assert_array_equal(again[i]["image"], records[i]["image"])
    assert len(source) >= 18 and source.corrupt + sum(source.left_out.values()) >= (
        change is not another_label
    )


def test_a_class_of_which_nothing_can_be_read_keeps_its_place(faces):
    for key in range(6, 11):
        damage(faces / "train.rec", key, lambda r: r[:40] + bytes(len(r) - 40))
    source = RecordIOFaces(faces)
    assert len(source) == 20
    for i in range(5, 10):
        assert source[i]["label"] == 1 and (source[i]["image"] == 127).all()
    assert source.corrupt == 5


def test_a_broken_index(faces, caplog):
    lines = (faces / "train.idx").read_text().splitlines()
    lines[3] = f"3\t{10**9}"  # past the end
    lines[5] = "5\tfive"
    lines[7] = f"7\t{10**30}"
    lines[9] = "-9\t40"
    lines.insert(12, "1\t40")  # a key twice
    (faces / "train.idx").write_text("\n".join(lines))
    with caplog.at_level(logging.WARNING, "jaxface.data"):
        source = RecordIOFaces(faces)
    assert source.left_out == {"wrong lines of the index": 5} and len(caplog.records) == 1
    assert len(source) == 16
    np.testing.assert_array_equal(source.labels, [k // 5 for k in range(20) if k + 1 not in (3, 5, 7, 9)])
    [source[i] for i in range(16)]
    for text in ("", "rubbish", "\0\xff" * 50, "1\t99999999\n", f"1\t{2**70}\n" * 3):
        (faces / "train.idx").write_text(text)
        assert len(RecordIOFaces(faces)) == 20  # scanned


def test_an_index_that_points_beside_the_records(faces):
    lines = [line.split("\t") for line in (faces / "train.idx").read_text().splitlines()]
    lines = [(key, int(at) + 4 * (key in ("4", "20"))) for key, at in lines]
    (faces / "train.idx").write_text("".join(f"{key}\t{at}\n" for key, at in lines))
    source = RecordIOFaces(faces)
    assert len(source) == 20 and [source[i]["label"] for i in (3, 19)] == [0, 3] and source.corrupt == 2


def test_identity_records_that_lie(faces):
    good = RecordIOFaces(faces).labels
    whole = (faces / "train.rec").read_bytes()
    for key, labels in [
        (0, (1e30, 2e30)),
        (0, (np.nan, 3)),
        (0, (25, 21)),
        (0, (0, 0)),
        (22, (1, 11)),
        (22, (np.inf, np.inf)),
        (22, (6.5, 11)),
        (22, (11, 6)),
        (24, (16, 2**25)),
        (23, (0, 0)),
    ]:
        (faces / "train.rec").write_bytes(whole)
        damage(faces / "train.rec", key, lambda r, n=labels: r[:-8] + np.float32(n).tobytes())
        source = RecordIOFaces(faces)
        for i in range(len(source)):
            position = int(source._positions[i]) - 1
            assert 0 <= position < 20
            assert source.class_names[source[i]["label"]] == str(good[position])
        assert len(source) == 20 or source.left_out


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 2.0**24, 4.0])
def test_labels_that_are_no_class(tmp_path, label):
    write_set(tmp_path, identities=False)
    damage(tmp_path / "train.rec", 7, lambda r: r[:12] + np.float32(label).tobytes() + r[16:])
    source = RecordIOFaces(tmp_path)  # 4 is outside the classes of `property`
    assert len(source) == 19 and source.left_out == {"records whose label is no class": 1}


@pytest.mark.parametrize("text", ["", "many", "1,2", "9" * 99, f"5,{MAX_SIDE + 1},16", "-1,16,16", "4,32,32"])
def test_a_property_that_is_wrong_is_not_believed(faces, text):
    (faces / "property").write_text(text)
    source = RecordIOFaces(faces)
    assert source.image_shape == (16, 16, 3) and len(source) == 20


def test_a_truncated_file(faces):
    whole = (faces / "train.rec").read_bytes()
    (faces / "train.rec").write_bytes(whole[: len(whole) // 2])
    source = RecordIOFaces(faces)
    assert 8 <= len(source) <= 11 and all(
        source[i]["label"] == source.labels[i] == int(source._positions[i] - 1) // 5
        for i in range(len(source))
    )
    (faces / "train.idx").unlink()
    assert 8 <= len(RecordIOFaces(faces)) <= 11


def test_the_epoch_keeps_its_length_and_its_place_with_damage(faces):
    damage(faces / "train.rec", 8, wrong_magic)
    make = lambda: batches(RecordIOFaces(faces), batch_size=4, seed=3)  # noqa: E731
    stream = make()
    whole = [next(stream) for _ in range(10)]
    resumed = make()
    resumed.set_state({**make().get_state(), "step": 4})
    for expected in whole[4:]:
        found = next(resumed)
        np.testing.assert_array_equal(found["image"], expected["image"])
        np.testing.assert_array_equal(found["label"], expected["label"])
    assert sorted(np.concatenate([b["label"] for b in whole[:5]]).tolist()) == [k // 5 for k in range(20)]


@pytest.mark.slow
def test_worker_processes_read_the_same(faces):
    threads, workers = (batches(RecordIOFaces(faces), batch_size=4, seed=3, workers=w) for w in (0, 2))
    for _ in range(6):
        np.testing.assert_array_equal(next(threads)["image"], next(workers)["image"])
    workers.close()


def test_user_mistakes_are_one_line(tmp_path, faces):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.rec", "b.rec"):
        (tmp_path / "two" / name).write_bytes(b"")
    (tmp_path / "none.rec").write_bytes(b"")
    (tmp_path / "bad.rec").write_bytes(encode_record(pack(IRHeader(0, 1.0, 0, 0), b"no image")) * 3)
    for path in ("missing.rec", "empty", "two", "none.rec", "bad.rec"):
        with pytest.raises(UserError, match=r"^path: ") as caught:
            RecordIOFaces(tmp_path / path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^idx: "):
        RecordFile(faces / "train.rec", faces / "other.idx")
    with pytest.raises(UserError, match="exists already"):
        RecordWriter(faces / "train.rec")
    with pytest.raises(UserError, match="cannot write"):
        RecordWriter("/proc/nothing/train.rec")


def test_a_writer_that_is_stopped_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(0, jpeg(0))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no image"), RecordWriter(tmp_path / "train.rec"):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="follow each other"), RecordWriter(tmp_path / "train.rec") as writer:
        [writer.write(label, jpeg(0)) for label in (0, 1, 0)]
    with pytest.raises(ValueError, match="label"), RecordWriter(tmp_path / "train.rec") as writer:
        writer.write(2**24, jpeg(0))


@pytest.mark.parametrize("identities", [True, False])
@pytest.mark.parametrize("stop", [0, 3, 12])
def test_another_writer_goes_on(tmp_path, identities, stop):
    images = write_set(tmp_path / "whole", identities=identities)
    writer = RecordWriter(tmp_path / "part/train.rec", identities=identities)
    for number in range(stop):
        writer.write(number // 5, images[number])
    state = writer.checkpoint()
    writer.write(stop // 5, images[stop])  # lost
    writer.stop()
    with RecordWriter(tmp_path / "part/train.rec", identities=identities, resume=state) as writer:
        for number in range(stop, 20):
            writer.write(number // 5, images[number])
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def fuzzed(rng, whole):
    """Bytes with some of them changed, cut out, doubled, or their end cut off."""
    changed = bytearray(whole)
    for _ in range(int(rng.integers(1, 6))):
        changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
    how = int(rng.integers(4))
    at, length = int(rng.integers(len(changed))), int(rng.integers(1, 64))
    if how == 1:
        del changed[at:]
    elif how == 2:
        del changed[at : at + length]
    elif how == 3:
        changed[at:at] = changed[at : at + length]
    return bytes(changed)


@pytest.mark.parametrize("index", [True, False])
def test_two_thousand_damaged_sets(tmp_path, index, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxface.data"), "disabled", True)
    write_set(tmp_path, people=2, each=3, images=[jpeg(i, size=8) for i in range(6)])
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    good, lines = rec.read_bytes(), idx.read_bytes()
    if not index:
        idx.unlink()
    rng, opened = np.random.default_rng(int(index)), 0
    for case in range(1000):
        rec.write_bytes(fuzzed(rng, good) if case % 4 or not index else good)
        if index and case % 2:
            idx.write_bytes(fuzzed(rng, lines))
        elif index:
            idx.write_bytes(lines)
        try:
            source = RecordIOFaces(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        opened += 1
        for i in range(len(source)):
            record = source[i]
            assert record["image"].shape == source.image_shape and record["label"] == source.labels[i]
    assert opened > 600


def test_scanning_takes_time_in_proportion_to_the_file(tmp_path):
    """Beginnings that nest: each walks over all that follows before it fails, if a scan lets it."""
    path = tmp_path / "a.rec"
    chain = (MAGIC + b"\0\0\0\x40") * 4000
    begins = b"".join(MAGIC + (1 << 29 | 8 * (4000 - k)).to_bytes(4, "little") for k in range(1, 4001))
    path.write_bytes(begins + chain + encode_record(b"good"))
    visits = []
    read = RecordFile._pread
    RecordFile._pread = lambda self, offset, count: visits.append(offset) or read(self, offset, count)
    try:
        file = RecordFile(path)
    finally:
        RecordFile._pread = read
    assert len(visits) < 3 * recordio._WASTE and file[len(file) - 1] == b"good"


def test_an_image_that_is_too_large_leaves_the_files_as_they_are(tmp_path, monkeypatch):
    image = encode_image(np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr(recordio, "MAX_RECORD", len(image) + 40)
    with RecordWriter(tmp_path / "train.rec") as writer:
        for label in (0, 1):
            with pytest.raises(recordio.TooLarge):
                writer.write(label, image + bytes(100))
            writer.write(label, image)
    file = RecordFile(tmp_path / "train.rec")
    assert len(file) == 1 + 2 + 2 and not file.damaged
    assert RecordIOFaces(tmp_path).labels.tolist() == [0, 1]


def test_two_sets_at_once_in_one_folder_are_refused(tmp_path):
    image = encode_image(np.zeros((8, 8, 3), np.uint8))
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, image)
        with pytest.raises(UserError, match=r"^rec: .*\.a\.rec\.partial is being written"):
            RecordWriter(tmp_path / "b.rec")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.idx", "a.rec", "property"]


def test_hidden_files_are_no_records(tmp_path):
    with RecordWriter(tmp_path / "faces.rec") as writer:
        writer.write(0, encode_image(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "._faces.rec").write_bytes(b"of another system")
    assert recordio.record_path(tmp_path) == tmp_path / "faces.rec"
