"""Reading GGUF: transformers' names and row order, and the tokenizer that SmolLM2 was trained with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from rankwise.errors import ModelError
from rankwise.models.gguf import GGUF
from tests.unit import tiny_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(GGUF(path).tokenizer()))


def test_tensors_are_the_originals(path: Path) -> None:
    found, originals = GGUF(path).tensors(), tiny_gguf.tensors()
    assert found.keys() == originals.keys()
    for name, original in originals.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == original.shape
        np.testing.assert_allclose(found[name], original, atol=1e-3, err_msg=name)


def test_tensors_are_those_that_transformers_reads(path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    theirs = model.state_dict()
    for name, array in GGUF(path).tensors().items():
        np.testing.assert_array_equal(theirs[name].numpy(), array, err_msg=name)


def test_the_vocabulary_is_the_files(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab() == {token: i for i, token in enumerate(tiny_gguf.TOKENS)}


@pytest.mark.parametrize("text", ["an apple", "  \tnaïve 😀\n", "a  2013 b", "don't", "½ é ٣"])
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_split_off_before_words(tokenizer: Tokenizer) -> None:
    # If words were split first, the second space would join the digit, and ĠĠ could not form.
    assert tokenizer.encode("an  20").tokens == ["an", "ĠĠ", "2", "0"]


def test_special_tokens(path: Path, tokenizer: Tokenizer) -> None:
    assert GGUF(path).special_tokens() == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
    }
    assert tokenizer.encode("<|im_end|>").ids == [2]
    assert tokenizer.encode("").ids == []


def test_another_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "x.gguf", pre="llama-bpe")
    with pytest.raises(ModelError, match=r"x\.gguf: unknown tokenizer .*llama-bpe"):
        GGUF(tmp_path / "x.gguf").tokenizer()


def test_another_family_is_refused(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "x.gguf", architecture="bert")
    with pytest.raises(ModelError, match=r"contains 'bert', not a llama"):
        GGUF(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["blk.0.attn_sinks.weight", "blk.x.attn_q.weight", "rope_freqs.weight", "x"])
def test_an_unknown_tensor_is_refused(tmp_path: Path, name: str) -> None:
    tiny_gguf.write(tmp_path / "x.gguf", extra=name)
    with pytest.raises(ModelError, match=f"unknown tensor {name}"):
        GGUF(tmp_path / "x.gguf").tensors()


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -500])
def test_a_truncated_file_is_refused(path: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "x.gguf").write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"x\.gguf: not a GGUF file, or damaged"):
        GGUF(tmp_path / "x.gguf")
