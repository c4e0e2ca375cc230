"""Captions as tokens: what is written is read again, and no other tokenizer is taken for that of a checkpoint."""

import json
import pickle

import numpy as np
import pytest

from jaxface.data.transforms.text import LENGTH, Tokenizer, caption_bytes, caption_text, change_caption
from jaxface.errors import UserError

pytest.importorskip("tokenizers")
CAPTIONS = ["a photo of bababa, smiling, with glasses", "portrait of dobaba, bald, looking left"] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, vocabulary=300, length=24)


def test_sentences_start_end_and_are_filled_up(tokenizer):
    tokens = tokenizer.encode(["a photo", CAPTIONS[0] * 4])
    assert tokens.shape == (2, 24) and tokens.dtype == np.int32
    assert (tokens[:, 0] == tokenizer.start).all()
    end = list(tokens[0]).index(tokenizer.end)
    assert (tokens[0, end + 1 :] == tokenizer.pad).all() and end < 8
    assert tokens[1, -1] == tokenizer.end  # what is too long is cut before it
    assert tokenizer.vocabulary == 300 and len(set(tokenizer.special)) == 4


def test_whatever_is_written_is_read_again(tokenizer):
    for text in (CAPTIONS[1], "größer, 顔 und 🙂"):
        long = Tokenizer(tokenizer.text, length=80)
        assert long.decode(long.encode([text])[0]) == text
    assert tokenizer.encode(["A PHOTO"]).tolist() == tokenizer.encode(["a photo"]).tolist()


def test_it_survives_a_file_a_process_and_a_string(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for other in (
        Tokenizer.load(tmp_path / "tokenizer.json", length=24),
        pickle.loads(pickle.dumps(tokenizer)),
        Tokenizer.train(CAPTIONS, vocabulary=300, length=24),
    ):
        assert other.digest == tokenizer.digest
        np.testing.assert_array_equal(other.encode(CAPTIONS), tokenizer.encode(CAPTIONS))


def test_a_published_one_gets_what_it_has_not(tokenizer, tmp_path):
    """As CLIP's: other names, and neither padding nor mask."""
    names = {"<start>": "<|startoftext|>", "<end>": "<|endoftext|>", "<pad>": "<a>", "<mask>": "<b>"}
    text = tokenizer.text
    for ours, theirs in names.items():
        text = text.replace(json.dumps(ours), json.dumps(theirs))
    (tmp_path / "tokenizer.json").write_text(text)
    clip = Tokenizer.load(tmp_path / "tokenizer.json", length=24)
    assert clip.vocabulary == 302 and (clip.start, clip.end) == (tokenizer.start, tokenizer.end)
    assert (clip.pad, clip.mask) == (300, 301)
    assert clip.decode(clip.encode(["a photo"])[0]) == "a photo"


def test_what_is_no_tokenizer_is_refused_in_one_line(tokenizer, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    text = tokenizer.text.replace(json.dumps("<start>"), json.dumps("<begin>"))
    for make, words in (
        (lambda: Tokenizer.load(tmp_path / "a.json", length=8), r"tokenizer: is not a tokenizer\.json"),
        (lambda: Tokenizer.load(tmp_path / "b.json", length=8), "tokenizer: cannot read .*No such file"),
        (lambda: Tokenizer(text, length=8), "tokenizer: needs a token for the start of a text"),
        (lambda: Tokenizer(tokenizer.text, length=2), "length: needs an integer from 3, got 2"),
        (lambda: Tokenizer.train(CAPTIONS, vocabulary=200), "vocabulary: needs an integer from 260, got 200"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_another_tokenizer_does_not_match_a_checkpoint(tokenizer):
    tokenizer.check_same(tokenizer.digest, 300)
    other = Tokenizer.train(["another text"], vocabulary=300, length=24)
    with pytest.raises(UserError, match="tokenizer: does not match the checkpoint, which has 300 tokens"):
        other.check_same(tokenizer.digest, 300)
    with pytest.raises(UserError, match=f"which was trained with {tokenizer.digest}; this one is"):
        Tokenizer(tokenizer.text, length=25).check_same(tokenizer.digest, 300)


def test_captions_in_records():
    text = "x" * (LENGTH - 1) + "é"
    assert caption_text(caption_bytes("größer")) == "größer"
    assert caption_text(caption_bytes(text)) == "x" * (LENGTH - 1)  # half a character is none


def test_words_are_exchanged_swapped_or_deleted():
    caption, synonyms = "a photo of someone, with glasses", [("photo", "picture"), ("glasses", "spectacles")]
    words, seen = sorted(caption.split()), set()
    for seed in range(60):
        changed = change_caption(caption, np.random.default_rng(seed), synonyms=synonyms).split()
        if len(changed) < len(words):
            kind = "deleted"
            assert set(changed) < set(words)
        elif sorted(changed) == words:
            kind = "swapped"
        else:
            kind = "exchanged"
            assert sum(a != b for a, b in zip(changed, caption.split(), strict=True)) == 1
            assert {"picture", "spectacles"} & set(changed)
        seen.add(kind)
    assert seen == {"deleted", "swapped", "exchanged"}
    assert change_caption("photo", np.random.default_rng(1)) == "photo"
