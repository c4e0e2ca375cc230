"""Sentences as tokens: a tokenizer that is saved with a run, and changed sentences.

A caption in a record is UTF-8 of a fixed length, filled up with zeros, so that a batch of records stays arrays.

Methods: intern
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from jaxface.errors import UserError
from jaxface.extras import optional
from jaxface.paths import name_text

LENGTH = 256
"""Bytes of a caption in a record; what is longer is cut."""
_LARGEST = 64 << 20  # bytes of a file that is read
_SPECIAL = {
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "start": ("<start>", "<|startoftext|>", "<s>", "[CLS]"),
    "end": ("<end>", "<|endoftext|>", "</s>", "[SEP]"),
    "mask": ("<mask>", "[MASK]", "<|mask|>"),
}
"""Names under which published tokenizers have what a text tower needs; the first is ours."""


def caption_bytes(caption: str) -> np.ndarray:
    """[256] uint8 of a caption.

    Example:
      >>> caption_text(caption_bytes("a photo"))
      'a photo'
    """
    encoded = caption.encode()[:LENGTH]
    return np.frombuffer(encoded.ljust(LENGTH, b"\0"), np.uint8)


def caption_text(caption: np.ndarray) -> str:
    """The inverse of `caption_bytes`; a character that was cut in two is left out."""
    return bytes(np.asarray(caption, np.uint8)).rstrip(b"\0").decode(errors="ignore")


class Tokenizer:
    """A tokenizer of the library `tokenizers`, with padding, start, end and mask.

    Attributes:
      length: tokens of a sentence, start and end included. vocabulary: number of tokens.
      pad, start, end, mask: numbers of the special tokens.
    """

    def __init__(self, text: str, *, length: int, argument: str = "tokenizer"):
        """Reads the JSON of a tokenizer, as the library writes it.

        Args:
          text: content of a tokenizer.json. Of a published one without a token for padding or mask these are added.
          length: ≥ 3.
          argument: what it is called in messages.

        Raises:
          UserError: no tokenizer, or one without a start or an end.
          MissingExtra: the package is not installed.
        """
        library = optional("tokenizers", "foundation")
        try:
            self._made = library.Tokenizer.from_str(text)
        except Exception as error:
            raise UserError(
                f"{argument}: is not a tokenizer.json ({' '.join(str(error).split())[:100]})"
            ) from None
        if length < 3:
            raise UserError(f"length: needs an integer from 3, got {length}")
        self._made.no_padding()
        self._made.no_truncation()
        ids = {}
        for role, names in _SPECIAL.items():
            known = [name for name in names if self._made.token_to_id(name) is not None]
            if not known and role in ("start", "end"):
                raise UserError(
                    f"{argument}: needs a token for the {role} of a text, one of {', '.join(names)}"
                )
            if not known:
                self._made.add_special_tokens([names[0]])
                known = [names[0]]
            ids[role] = self._made.token_to_id(known[0])
        self.pad, self.start, self.end, self.mask = (ids[role] for role in _SPECIAL)
        self.length, self.vocabulary = length, self._made.get_vocab_size()

    @classmethod
    def train(cls, captions: Iterable[str], *, vocabulary: int = 512, length: int = 32) -> "Tokenizer":
        """Byte-level pairs (BPE, arXiv:1508.07909) learned from captions: whatever is written has tokens.

        Args:
          captions: to learn from.
          vocabulary: most tokens, at least the 256 bytes and the 4 special ones.
          length: of a sentence.

        Raises:
          UserError: a vocabulary below 260.

        Example:
          >>> tokenizer = Tokenizer.train(["a photo of a face"] * 3, vocabulary=300, length=8)
          >>> tokens = tokenizer.encode(["a photo", "ein Gesicht, größer"])
          >>> tokens.shape, tokenizer.decode(tokens[0])
          ((2, 8), 'a photo')
        """
        if vocabulary < 260:
            raise UserError(f"vocabulary: needs an integer from 260, got {vocabulary}")
        library = optional("tokenizers", "foundation")
        made = library.Tokenizer(library.models.BPE())
        made.normalizer = library.normalizers.Sequence(
            [library.normalizers.NFC(), library.normalizers.Lowercase()]
        )
        made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        made.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[names[0] for names in _SPECIAL.values()],
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        made.train_from_iterator(captions, trainer)
        return cls(made.to_str(), length=length)

    @classmethod
    def load(cls, path: str | pathlib.Path, *, length: int, argument: str = "tokenizer") -> "Tokenizer":
        """Of a file, tokenizer.json.

        Raises:
          UserError: it cannot be read, or is no tokenizer.
        """
        path = pathlib.Path(path)
        try:
            if path.stat().st_size > _LARGEST:
                raise UserError(f"{argument}: {name_text(path)} is larger than {_LARGEST >> 20} MiB")
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise UserError(f"{argument}: cannot read {name_text(path)}: {reason}") from None
        return cls(text, length=length, argument=argument)

    @property
    def special(self) -> tuple[int, int, int, int]:
        """Numbers of padding, start, end and mask."""
        return self.pad, self.start, self.end, self.mask

    @property
    def text(self) -> str:
        """Its JSON, from which it is made again."""
        return json.dumps(json.loads(self._made.to_str()), ensure_ascii=False, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """16 characters that tell it from others."""
        return hashlib.sha256(f"{self.length} {self.text}".encode()).hexdigest()[:16]

    def save(self, path: str | pathlib.Path) -> None:
        """Writes tokenizer.json."""
        pathlib.Path(path).write_text(self.text)

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Start, tokens, end and padding of each caption: [N, length] int32; what is too long is cut before the end."""
        rows = np.full((len(captions), self.length), self.pad, np.int32)
        encoded = self._made.encode_batch(list(captions), add_special_tokens=False)
        for row, one in zip(rows, encoded, strict=True):
            ids = [self.start, *one.ids[: self.length - 2], self.end]
            row[: len(ids)] = ids
        return rows

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens [L], special ones left out."""
        words = [int(token) for token in tokens if token not in self.special]
        return self._made.decode(words).strip()

    def __getstate__(self):
        return {"text": self.text, "length": self.length}

    def __setstate__(self, state):
        self.__init__(state["text"], length=state["length"])

    def check_same(self, digest: str, vocabulary: int, *, argument: str = "tokenizer") -> None:
        """Holds it to that of a checkpoint.

        Args:
          digest: of the tokenizer that the checkpoint was trained with. vocabulary: rows of its table of tokens.

        Raises:
          UserError: another tokenizer.
        """
        if self.vocabulary != vocabulary:
            raise UserError(
                f"{argument}: does not match the checkpoint, which has {vocabulary} tokens; this one has {self.vocabulary}"
            )
        if self.digest != digest:
            raise UserError(
                f"{argument}: does not match the checkpoint, which was trained with {digest}; this one is {self.digest}"
            )


def change_caption(
    caption: str, rng: np.random.Generator, *, synonyms: Sequence[Sequence[str]] = (), share: float = 0.2
) -> str:
    """A caption with some words exchanged for synonyms, or swapped, or deleted, one of the three (EDA, arXiv:1901.11196).

    Args:
      caption: words between spaces.
      rng: of the change.
      synonyms: groups of words that stand for each other; where no word has one, words are swapped or deleted.
      share: of the words that changes, at least one.

    Returns:
      The changed caption, of at least one word; the same where it has but one word and no synonym.

    Example:
      >>> change_caption("a photo", np.random.default_rng(0))
      'photo'
    """
    words = caption.split()
    count = max(1, round(share * len(words)))
    others = {word: [o for o in group if o != word] for group in synonyms for word in group}
    known = [i for i, word in enumerate(words) if word.strip(",.") in others]
    kind = rng.integers(0 if known else 1, 3)
    if kind == 0:
        for i in rng.permutation(known)[:count]:
            word = words[i].strip(",.")
            words[i] = words[i].replace(word, others[word][rng.integers(len(others[word]))])
    elif len(words) < 2:
        return caption
    elif kind == 1:
        for _ in range(count):
            i, j = rng.choice(len(words), 2, replace=False)
            words[i], words[j] = words[j], words[i]
    else:
        gone = set(rng.permutation(len(words))[: min(count, len(words) - 1)].tolist())
        words = [word for i, word in enumerate(words) if i not in gone]
    return " ".join(words)
