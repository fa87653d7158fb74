"""A GGUF file of a Llama with a few thousand parameters, as llama.cpp's converter would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

D_MODEL, D_FF, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
HEAD_DIM = D_MODEL // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "a n", "Ġ a"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in MERGES)]
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 32,
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "pad_token_id": 2,
}

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def tensors() -> Arrays:
    """Random weights under transformers' names, exact in Q8_0 except for its float16 scale."""
    shapes = {"model.embed_tokens": (len(TOKENS), D_MODEL), "model.norm": (D_MODEL,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.input_layernorm": (D_MODEL,), f"{layer}.post_attention_layernorm": (D_MODEL,)}
        shapes |= {f"{layer}.self_attn.{module}_proj": (D_MODEL, D_MODEL) for module in "qo"}
        shapes |= {f"{layer}.self_attn.{module}_proj": (KV_HEADS * HEAD_DIM, D_MODEL) for module in "kv"}
        shapes |= {f"{layer}.mlp.{module}_proj": (D_FF, D_MODEL) for module in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj"] = (D_MODEL, D_FF)
    random = np.random.default_rng(0)
    arrays = {}
    for name, shape in shapes.items():
        whole = random.integers(-126, 127, shape).astype(np.float32)
        whole[..., ::32] = 127  # the maximum of each block of 32, so that the step size is 1 / 128
        arrays[f"{name}.weight"] = whole / np.float32(128)
    return arrays


def write(path: Path, *, pre: str = "smollm", architecture: str = "llama", extra: str = "") -> None:
    """Write the GGUF file: norms in float32, the rest in Q8_0.

    Args:
        path: output file.
        pre: name of the pre-tokenizer.
        architecture: name of the model's family.
        extra: name of an additional tensor.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    for name, array in tensors().items():
        _add(writer, _ggml_name(name), _paired(name, array))
    if extra:
        _add(writer, extra, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _ggml_name(name: str) -> str:
    kinds = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    found = kinds.get_name(name, try_suffixes=(".weight",))
    assert found is not None
    return str(found)


def _paired(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Reorder rows to llama.cpp's order, where rows that are rotated together are adjacent."""
    if "q_proj" not in name and "k_proj" not in name:
        return array
    half = HEAD_DIM // 2
    starts = range(0, len(array), HEAD_DIM)
    return array[[start + row for start in starts for i in range(half) for row in (i, half + i)]]


def _add(writer: gguf.GGUFWriter, name: str, array: np.ndarray[Any, Any]) -> None:
    if array.ndim == 1:
        writer.add_tensor(name, array)
    else:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
