import collections
import os
import pickle
import pickletools
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.safe_pickle import OPCODES, Damaged, Name, Refused, load


def read(data, functions=None, *, opcodes=OPCODES, **options):
    return load(data, functions or {}, opcodes=opcodes, purpose="a test", **options)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(plain, st.integers(3, 5))
def test_what_plain_objects_are_read_back(value, protocol):
    data = pickle.dumps(value, protocol)
    assert read(data) == value
    assert read(data + b"rest") == value, "what follows the end is not looked at"
    for end in range(len(data)):
        with pytest.raises(Damaged):
            read(data[:end])


def test_a_name_means_what_the_caller_says():
    data = pickle.dumps([collections.OrderedDict(a=1), os.path.join], 2)
    functions = {
        "collections.OrderedDict": lambda arguments: {"called with": arguments},
        "posixpath.join": None,
    }
    made, name = read(data, functions)
    assert made == {"called with": (), "a": 1} and name == Name("posixpath.join")
    with pytest.raises(Refused, match=r"^names 'posixpath\.join', which a test does not need$"):
        read(data, {"collections.OrderedDict": functions["collections.OrderedDict"]})
    with pytest.raises(Refused, match=r"^calls 'posixpath\.join', which a test does not need$"):
        read(b"cposixpath\njoin\n)R.", functions)
    with pytest.raises(Refused, match=r"^calls a int, which"):
        read(b"K\1)R.", functions)


def test_nothing_is_imported():
    assert "this" not in sys.modules
    with pytest.raises(Refused, match=r"names 'this\.s'"):
        read(b"cthis\ns\n.")
    assert read(b"cthis\ns\n.", {"this.s": None}) == Name("this.s") and "this" not in sys.modules


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_only_the_instructions_that_the_caller_needs(opcode):
    code = opcode.code.encode("latin-1")
    if opcode.name == "STOP":
        with pytest.raises(Damaged, match="operands"):
            read(code)
        return
    with pytest.raises(Refused, match=f"^uses {opcode.name}, which a test does not need$"):
        read(b"N" + code + b".", opcodes=OPCODES - {opcode.name})
    assert opcode.name in OPCODES or opcode.name in {
        *("PERSID", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "FLOAT"),
        *("EMPTY_SET", "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER"),
    }


def test_objects_of_the_caller_and_their_states():
    states = []
    data = b"X\1\0\0\0aQ}X\1\0\0\0kK\7sb."
    target = object()
    made = read(
        data,
        persistent=lambda identity: target if identity == "a" else None,
        build=lambda *pair: states.append(pair),
    )
    assert made is target and states == [(target, {"k": 7})]


@pytest.mark.parametrize(
    "data",
    [
        b"\x8e" + b"\xff" * 7 + b"\0a.",
        b"X\xff\xff\xff\x7fa.",
        b"\x8b\xff\xff\xff\x7f\1.",
        b"(" * 100_000 + b".",
        b"}r\xff\xff\xff\xffK\1K\2s.",
        b"j\xff\xff\xff\xff.",
        b"c" + b"n" * 10**6 + b"\nx\n.",
    ],
    ids=str,
)
def test_no_number_in_a_pickle_takes_memory(data):
    tracemalloc.start()
    with pytest.raises(Refused) as caught:
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(data) + 100_000 and "\n" not in str(caught.value)


def test_what_calls_return_is_no_longer_than_the_pickle():
    text = "a" * 1000
    same = {"x.same": lambda arguments: arguments[0]}
    listed = b"X\xe8\3\0\0" + text.encode() + b"q\x000]"
    assert read(listed + b"cx\nsame\n(h\0tRa" + b".", same) == [text]
    with pytest.raises(Refused, match="more bytes than it is long"):
        read(listed + b"cx\nsame\n(h\0tRa" * 2 + b".", same)


def test_steps_are_counted():
    assert read(b"N0" * 10 + b"N.", max_steps=22) is None
    with pytest.raises(Refused, match="more than 21 instructions"):
        read(b"N0" * 10 + b"N.", max_steps=21)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes])
        | st.binary(max_size=3),
        max_size=40,
    ).map(b"".join)
)
def test_any_instructions_are_refused_or_read(code):
    try:
        read(code, build=lambda *_: None, persistent=lambda _: None)
    except Refused as error:
        assert "\n" not in str(error)
