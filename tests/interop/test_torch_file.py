import contextlib
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.interop import read_torch


def refusal(path) -> str:
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        read_torch(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6, "memory was taken for a number in the file"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_types_strides_and_shared_storages(write, torch_layout):
    data = np.arange(12, dtype=np.float32)
    tensors = {
        "whole": torch_layout.tensor_pickle("0", (3, 4), (4, 1), count=12),
        "transposed": torch_layout.tensor_pickle("0", (4, 3), (1, 4), count=12),
        "part": torch_layout.tensor_pickle("0", (2,), (4,), offset=5, count=12),
        "scalar": torch_layout.tensor_pickle("1", (), (), kind="LongStorage"),
        "empty": torch_layout.tensor_pickle("0", (0, 3), (3, 1), count=12),
        "brain": torch_layout.tensor_pickle("2", (2,), (1,), kind="BFloat16Storage"),
    }
    storages = {"0": data.tobytes(), "1": struct.pack("<q", 7), "2": b"\x80\x3f\x00\xc0"}
    path = write("x.pth", torch_layout.archive(torch_layout.state_pickle(tensors), storages))
    read = read_torch(path)
    assert list(read) == list(tensors)
    np.testing.assert_array_equal(read["whole"], data.reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], data.reshape(3, 4).T)
    np.testing.assert_array_equal(read["part"], [5, 9])
    assert read["scalar"] == 7 and read["scalar"].shape == () and read["empty"].shape == (0, 3)
    np.testing.assert_array_equal(read["brain"].astype(np.float32), [1, -2])


def test_plain_dicts_parameters_and_newer_pickles(write, torch_layout):
    tensor = torch_layout.tensor_pickle("0", (2,), (1,))
    short = b"\x8c\x01a\x94"  # SHORT_BINUNICODE and MEMOIZE
    name = b"\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_parameter\x94\x93\x94"
    hooks = b"ccollections\nOrderedDict\n)R"
    pickled = b"\x80\x04}" + short + name + tensor + b"\x88" + hooks + b"\x87R" + b"s."
    path = write("x.pth", torch_layout.archive(pickled, {"0": struct.pack("<2f", 1, 2)}))
    np.testing.assert_array_equal(read_torch(path)["a"], [1, 2])


class Payload:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_file_runs(write, torch_layout, tmp_path, protocol):
    sentinel = tmp_path / "sentinel"
    for content in (Payload(sentinel), {"conv1.weight": Payload(sentinel)}, [Payload(sentinel)]):
        pickled = pickle.dumps(content, protocol)
        assert "which a state dict of tensors does not need" in refusal(
            write("x.pth", torch_layout.archive(pickled, {}))
        )
        assert not sentinel.exists()
    pickle.loads(pickled)  # it would have
    assert sentinel.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"cbuiltins\neval\n",
        b"cos\nsystem\n",
        b"ctorch._utils\n_rebuild_tensor_v3\n",
        b"ctorch\nload\n",
        b"ccollections\nOrderedDict.fromkeys\n",
        b"\x8c\x08builtins\x8c\x04eval\x93",
    ],
)
def test_other_names_are_refused(write, torch_layout, name):
    pickled = b"\x80\x02" + name + b"X\x01\x00\x00\x001\x85R."
    assert "its pickle names" in refusal(write("x.pth", torch_layout.archive(pickled, {})))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (3,), "strides": (1,), "count": 3}, "claims 3 elements of float32 in 8 bytes"),
        ({"shape": (2,), "strides": (1,), "count": 10**12}, "claims 1000000000000 elements"),
        ({"shape": (3,), "strides": (1,), "count": 2}, "goes past its storage of 2 elements"),
        ({"shape": (2,), "strides": (1,), "count": 2, "offset": 1}, "goes past its storage"),
        ({"shape": (2**30, 2**30), "strides": (0, 0), "count": 2}, "goes past its storage"),
        ({"shape": (2,), "strides": (-1,), "count": 2}, "describes a tensor in an unknown way"),
        ({"shape": (2,), "strides": (1, 1), "count": 2}, "is damaged"),
        ({"shape": (2,), "strides": (1,), "count": 2, "kind": "HalfStorage"}, "2 elements of float16 in 8 bytes"),
        ({"shape": (2,), "strides": (1,), "count": 2, "key": "5"}, "is damaged"),
    ],
)  # fmt: skip
def test_sizes_are_checked_against_what_is_there(write, torch_layout, options, words):
    tensor = torch_layout.tensor_pickle(options.pop("key", "0"), **options)
    pickled = torch_layout.state_pickle({"a": tensor})
    assert words in refusal(write("x.pth", torch_layout.archive(pickled, {"0": bytes(8)})))


def test_claims_of_the_pickle_and_of_the_archive(write, torch_layout):
    # A memo index of 2^32 - 1, for which the standard unpickler would make room.
    pickled = b"\x80\x02}r\xff\xff\xff\xff."
    assert read_torch(write("x.pth", torch_layout.archive(pickled, {}))) == {}
    # A string of 4 GB.
    refusal(write("x.pth", torch_layout.archive(b"\x80\x02}X\xff\xff\xff\xff.", {})))
    tensor = torch_layout.tensor_pickle("0", (10**6,), (1,))
    pickled = torch_layout.state_pickle({"a": tensor})
    packed = torch_layout.archive(pickled, {"0": bytes(4 * 10**6)}, method=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(write("x.pth", packed))
    # The central directory claims another size for every entry: there it is at bytes 20 to 28.
    whole = bytearray(torch_layout.archive(pickled, {"0": bytes(16)}))
    place = whole.find(b"PK\x01\x02")
    while place >= 0:
        whole[place + 20 : place + 28] = struct.pack("<II", 2**31, 2**31)
        place = whole.find(b"PK\x01\x02", place + 1)
    assert "more than the file has" in refusal(write("x.pth", bytes(whole)))


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (b"\x80\x02].", "uses EMPTY_LIST"),
        (b"\x80\x02K\x01.", "needs a state dict"),
        (b"\x80\x02}X\x05\0\0\0epochK\x03s.", "'epoch' is int"),
        (b"\x80\x02}X\x05\0\0\0model}s.", "'model' is a dict"),
        (b"\x80\x02}K\x01K\x02s.", "names as keys"),
        (b"\x80\x02}", "is damaged"),
        (b"\x80\x02}}b}K\x01\x86b.", "sets attributes"),
        (b"", "is damaged"),
    ],
)
def test_pickles_that_are_no_state_dict(write, torch_layout, pickled, words):
    assert words in refusal(write("x.pth", torch_layout.archive(pickled, {})))


def test_older_formats_and_programs_say_what_to_do(write, torch_layout):
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    assert "torch.save(torch.load('old.pth', weights_only=True)" in refusal(write("old.pth", legacy))
    scripted = torch_layout.archive(b"\x80\x02}.", {}).replace(b"backbone/byteorder", b"backbone/byteorde2")
    assert read_torch(write("x.pth", scripted)) == {}
    big = torch_layout.archive(b"\x80\x02}.", {}).replace(b"little", b"bigger")
    refusal(write("x.pth", big))  # the checksum no longer fits either


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_as_a_pickle(write_once, torch_layout, data):
    path = write_once(torch_layout.archive(b"\x80\x02" + data + b".", {"0": bytes(8)}))
    with contextlib.suppress(UserError):
        assert isinstance(read_torch(path), dict)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_shuffled_instructions(write_once, torch_layout, data):
    tensor = torch_layout.tensor_pickle("0", (2,), (1,))
    pieces = [
        tensor,
        b"}",
        b"(",
        b"t",
        b"R",
        b"b",
        b"u",
        b"s",
        b"Q",
        b")",
        b"q\0",
        b"h\0",
        b"N",
        b"X\1\0\0\0a",
    ]
    pieces += [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"K\2",
        b"\x85",
        b"\x94",
        b".",
    ]
    chosen = data.draw(st.lists(st.sampled_from(pieces), max_size=12))
    path = write_once(torch_layout.archive(b"\x80\x02" + b"".join(chosen) + b".", {"0": bytes(8)}))
    with contextlib.suppress(UserError):
        assert isinstance(read_torch(path), dict)


@pytest.fixture(scope="module")
def write_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "x.pth"

    def write(data):
        path.write_bytes(data)
        return path

    return write
