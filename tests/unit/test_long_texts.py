"""A huge text is cut before it is tokenized, and its token ids are the same as without the cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rankwise.models.long_texts import LONG, PIECE, Cuts
from rankwise.models.tokenizer import Tokenizer

LENGTHS = (1, 7, 128)


def characters(number: int, seed: int) -> str:
    """Words, numbers, marks, spaces and newlines of many lengths."""
    draw = random.Random(seed)
    signs = ["so", "glad", "furious", "7", "2026", "...", "!", "é", "日本語", "😀", "e\u0301", "'s", "_"]
    gaps = [" ", " ", " ", "", "  ", "\n", "\n\n", "\t", " \n ", "\u00a0"]
    parts = [
        sign + gap
        for sign, gap in zip(draw.choices(signs, k=number), draw.choices(gaps, k=number), strict=True)
    ]
    return "".join(parts)[:number]


class Uncut(Cuts):
    """No cuts."""

    def start(self, text: str, max_length: int) -> str:
        return text

    def pieces(self, text: str) -> Iterator[str]:
        yield text


def without_cuts(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, which encodes every text as a whole."""
    whole = Tokenizer(tokenizer.folder, Backend.from_str(tokenizer._backend.to_str()))
    whole.__dict__["_cuts"] = Uncut(1, None)
    return whole


@pytest.fixture
def tokenizer(gpt2_base: Path) -> Tokenizer:
    return Tokenizer.load(gpt2_base)


def sentencepiece() -> Tokenizer:
    """A tokenizer like that of Llama 2: no pre-tokenizer, bytes for unknown characters."""
    letters = [*"\u2581abcdefghijklmnopqrstuvwxyz.!7\n"]
    merges = [("s", "o"), ("\u2581", "so"), ("g", "l"), ("gl", "a"), ("\u2581", "gla"), ("\u2581", "\u2581")]
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocabulary = {token: at for at, token in enumerate(dict.fromkeys(tokens))}
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return Tokenizer(Path("none"), backend)


@pytest.mark.parametrize("seed", range(4))
def test_the_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, seed: int) -> None:
    text = characters(LONG + 50_000, seed)
    for each in (tokenizer, sentencepiece()):
        whole = without_cuts(each)
        for length in LENGTHS:
            assert len(each._cuts.start(text, length)) < len(text), "it is not cut: this test shows nothing"
            (found,), (expected,) = each([text], length), whole([text], length)
            np.testing.assert_array_equal(found, expected)


def test_the_bound(tokenizer: Tokenizer) -> None:
    """A token stands for no more characters than it has."""
    text = characters(LONG + 50_000, 1)
    cuts = tokenizer._cuts
    for length in LENGTHS:
        start = cuts.start(text, length)
        assert len(start) >= length * cuts.longest
        assert text.startswith(start) and not start[-1].isspace() and text[len(start)] in " \n"


def test_twenty_megabytes_are_not_tokenized(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "so glad " * 2_500_000
    sizes: list[int] = []
    real = tokenizer._encode

    def spying(chunk: list[str]) -> list[Any]:
        sizes.extend(map(len, chunk))
        return real(chunk)

    monkeypatch.setattr(tokenizer, "_encode", spying)
    (ids,) = tokenizer([text], 32)
    assert len(ids) == 32 and tokenizer.truncated([text, "so glad"], 32) == 1
    assert max(sizes) < 10_000
    sizes.clear()
    assert tokenizer.lengths([text, "so glad"]).tolist()[0] > 1_000_000
    assert max(sizes) < PIECE + 10_000


def test_lengths_are_those_of_the_whole_text(tokenizer: Tokenizer) -> None:
    text = characters(PIECE + 200_000, 3)
    assert len(list(tokenizer._cuts.pieces(text))) > 1
    assert tokenizer.lengths([text]).tolist() == without_cuts(tokenizer).lengths([text]).tolist()


WITHOUT_SPACES = {
    "a word": "sogladfurious" * (LONG // 10),
    "a letter": "s" * (LONG + 20_000),
    "letters": "".join(random.Random(1).choices("soglad", k=LONG + 20_000)),
    "no words": "日本語😀e\u0301" * (LONG // 5),
    "spaces": " " * (LONG + 20_000) + "x",
}


@pytest.mark.parametrize("what", WITHOUT_SPACES)
def test_a_text_without_spaces_is_cut_anywhere(tokenizer: Tokenizer, what: str) -> None:
    text = WITHOUT_SPACES[what]
    for each in (tokenizer, sentencepiece()):
        for length in LENGTHS[:2]:
            start = each._cuts.start(text, length)
            assert length * each._cuts.longest < len(start) < len(text)
            np.testing.assert_array_equal(each([text], length)[0], without_cuts(each)([text], length)[0])


def test_texts_within_the_limit_are_whole(tokenizer: Tokenizer) -> None:
    for text in ("so glad " * (LONG // 8), "s" * LONG):
        assert len(text) == LONG and tokenizer._cuts.start(text, 1) == text


def test_lengths_without_spaces(tokenizer: Tokenizer) -> None:
    """A cut within a word may add a token."""
    text = "sogladfurious" * (PIECE // 8)
    pieces = list(tokenizer._cuts.pieces(text))
    assert "".join(pieces) == text and len(pieces) > 1 and max(map(len, pieces)) <= PIECE + LONG
    found, expected = (each.lengths([text])[0] for each in (tokenizer, without_cuts(tokenizer)))
    assert abs(found - expected) < 2 * len(pieces)


def test_dropped_characters_do_not_shorten_the_ids(tokenizer: Tokenizer) -> None:
    """A vocabulary without some letters: the start has too few tokens, so the whole text is tokenized."""
    vocabulary = {"a": 0, "\u0120": 1}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    few = Tokenizer(Path("none"), backend)
    text = "x" * (LONG // 2) + " x" * LONG + "a" * 10
    assert few([text], 200_000)[0].shape == without_cuts(few)([text], 200_000)[0].shape
    assert few([text], 40)[0].tolist() == [1] * 40
    text = "b" * LONG + " " + "a" * 10
    assert few([text + " b"], 8)[0].tolist() == [1, *[0] * 7]


def test_vocabularies_whose_tokens_cross_a_space_are_not_cut() -> None:
    crossing = {"a": 0, "\u2581": 1, "a\u2581": 2}
    backend = Backend(models.BPE(crossing, [("a", "\u2581")]))
    cuts = Cuts.of(backend)
    assert cuts.before is not None and cuts.before.search("a b") is None and cuts.before.search("a\nb")
    backend.add_tokens(["good\nday"])
    assert Cuts.of(backend).before is None
    assert Cuts.of(Backend(models.WordLevel({"a": 0}, unk_token="a"))).before is None
    assert Cuts.of(Backend(models.BPE({"a": 0}, [], end_of_word_suffix="</w>"))).before is None


def test_special_tokens_are_added_to_a_cut_text(tokenizer: Tokenizer) -> None:
    backend = Backend.from_str(tokenizer._backend.to_str())
    end = backend.token_to_id("<|endoftext|>")
    backend.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    added = Tokenizer(tokenizer.folder, backend)
    text = characters(LONG + 50_000, 2)
    (ids,) = added([text], 16)
    assert ids.tolist() == [*tokenizer([text], 15)[0].tolist(), end]


def test_text_kept_at_the_end_is_not_cut(tokenizer: Tokenizer) -> None:
    backend = Backend.from_str(json.dumps(json.loads(tokenizer._backend.to_str())))
    left = Tokenizer(tokenizer.folder, backend, keeps_end=True)
    text = "so glad " * (LONG // 4) + "furious"
    np.testing.assert_array_equal(left([text], 8)[0], left([text[-200:]], 8)[0])
