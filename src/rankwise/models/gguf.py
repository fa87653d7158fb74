"""Read a Llama model from a GGUF file as float32 tensors and a tokenizer.

GGUF is llama.cpp's format: metadata and quantized tensors in one file. Tensors and tokenizer are
converted to transformers' names and layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankwise.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL = (3, 4)
"""GGUF's token types for control tokens and for tokens added by the user."""


class GGUF:
    """A GGUF file, with its tensors memory-mapped.

    Raises:
        ModelError: the file is damaged, or is not a Llama.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ModelError(f"{path}: not a GGUF file, or damaged: {error}") from None
        if self.value("general.architecture") != "llama":
            raise ModelError(f"{path}: contains {self.value('general.architecture')!r}, not a llama")

    def value(self, key: str) -> Any:
        """A metadata field: a number, a string, or a list of either; None if it is missing."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def tensors(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """transformers' name -> float32 array, all dequantized."""
        from gguf import dequantize

        heads = self.value("llama.attention.head_count")
        turned = {"q_proj": heads, "k_proj": self.value("llama.attention.head_count_kv") or heads}
        tensors = {}
        for tensor in self._reader.tensors:
            name = self._name(tensor.name)
            array = dequantize(tensor.data, tensor.tensor_type)
            part = name.split(".")[-2]
            tensors[name] = _halves(array, turned[part]) if part in turned else array
        return tensors

    def tokenizer(self) -> dict[str, Any]:
        """The byte-level BPE tokenizer, as the content of a tokenizer.json.

        Raises:
            ModelError: the file has another kind of tokenizer.
        """
        kind = self.value("tokenizer.ggml.model"), self.value("tokenizer.ggml.pre")
        if kind != ("gpt2", "smollm"):
            raise ModelError(f"{self.path}: unknown tokenizer {kind}")
        tokens: list[str] = self.value("tokenizer.ggml.tokens")
        kinds: list[int] = self.value("tokenizer.ggml.token_type")
        special = [i for i, kind in enumerate(kinds) if kind in SPECIAL]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(i, tokens[i]) for i in special],
            "normalizer": None,
            # SmolLM2 was trained with each digit as a separate token, split off before words.
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
            },
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": [pair.split(" ") for pair in self.value("tokenizer.ggml.merges")],
            },
        }

    def special_tokens(self) -> dict[str, str]:
        """transformers' name of a special token -> the token, for those that the file has."""
        tokens = self.value("tokenizer.ggml.tokens")
        kinds = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: self.value(f"tokenizer.ggml.{kind}_token_id") for name, kind in kinds.items()}
        return {name: tokens[i] for name, i in ids.items() if i is not None}

    def _name(self, name: str) -> str:
        if name in NAMES:
            return NAMES[name]
        bucket, _, rest = name.removeprefix("blk.").partition(".")
        part = rest.removesuffix(".weight")
        if not bucket.isdecimal() or part not in LAYER_NAMES:
            raise ModelError(f"{self.path}: unknown tensor {name}")
        return f"model.layers.{bucket}.{LAYER_NAMES[part]}.weight"


def _halves(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo GGUF's permutation of the rows of a query or key weight.

    The rotary embedding rotates pairs of rows. The rows of a pair are adjacent in GGUF, and half a
    head apart in transformers.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])  # (heads, head_dim / 2, 2, in)
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _added(i: int, token: str) -> Mapping[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": token, **flags, "special": True}
