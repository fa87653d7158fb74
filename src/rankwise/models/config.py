"""Checked reading of a model's config.json, which is untrusted input."""

from __future__ import annotations

from collections.abc import Container, Mapping
from reprlib import repr as brief
from typing import Any

from rankwise.errors import ModelError

LARGEST = 1 << 24
"""No size in a config may exceed this; a larger one is an error or an attack."""
MOST = dict.fromkeys(("n_layer", "num_hidden_layers"), 1 << 10)
MOST |= dict.fromkeys(("n_head", "num_attention_heads", "num_key_value_heads"), 1 << 12)
MOST |= dict.fromkeys(("n_embd", "hidden_size", "head_dim"), 1 << 17)
MOST |= dict.fromkeys(("n_inner", "intermediate_size"), 1 << 20)
"""Tighter bounds, each several times that of the largest model there is."""

_SIZE, _REAL, _FLAG, _WORD = (int,), (int, float), (bool,), (str,)
KEYS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(
        ("n_layer", "n_head", "n_embd", "n_inner", "n_positions", "n_ctx", "vocab_size", "num_hidden_layers",
         "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
         "max_position_embeddings", "sliding_window", "max_window_layers", "pretraining_tp"),
        _SIZE,
    ),
    **dict.fromkeys(
        ("layer_norm_epsilon", "rms_norm_eps", "initializer_range", "embd_pdrop", "attn_pdrop", "resid_pdrop",
         "rope_theta", "attention_dropout", "summary_first_dropout"),
        _REAL,
    ),
    **dict.fromkeys(
        ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_cache", "scale_attn_weights",
         "use_sliding_window", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
         "add_cross_attention", "summary_proj_to_labels", "summary_use_proj"),
        _FLAG,
    ),
    **dict.fromkeys(
        ("model_type", "activation_function", "hidden_act", "dtype", "torch_dtype", "transformers_version",
         "tokenizer_class", "summary_type"),
        _WORD,
    ),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), (int, list)),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), (dict,)),
    **dict.fromkeys(("architectures", "layer_types"), (list,)),
}  # fmt: skip
"""The keys of a config.json that are read or passed on, and the types of their values. No other is."""


def known(json: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config.json may be passed on: the keys of `KEYS`, each of its type or null.

    What runs code in other libraries (`auto_map`, a kernel's name for attention) is not among them.

    Raises:
        ModelError: a value is of another type.
    """
    found = {key: json[key] for key in KEYS if key in json}
    for key, value in found.items():
        if value is not None and type(value) not in KEYS[key]:
            raise ModelError(f"config.json: {key} is {brief(value)}, and that is not {_named(KEYS[key])}")
    return found


def _named(kinds: tuple[type, ...]) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    return " or ".join(names.get(kind, "an object" if kind is dict else "a list") for kind in kinds)


def count(json: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number; `default` where the key is missing or null."""
    value = json.get(key)
    value = default if value is None else value
    most = MOST.get(key, LARGEST)
    if type(value) is not int or not 1 <= value <= most:
        raise ModelError(f"config.json: {key} must be a whole number from 1 to {most}, not {brief(value)}")
    return value


def positive(json: Mapping[str, Any], key: str, default: float) -> float:
    """A positive finite number."""
    value = json.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise ModelError(f"config.json: {key} must be a positive number, not {brief(value)}")
    return float(value)


def fraction(json: Mapping[str, Any], key: str, default: float) -> float:
    """A number from 0 to below 1."""
    value = json.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ModelError(f"config.json: {key} must lie between 0 and 1, not {brief(value)}")
    return float(value)


def choice(json: Mapping[str, Any], key: str, default: str, known: Container[str]) -> str:
    """One of the known words."""
    value = json.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise ModelError(f"config.json: {key} = {brief(value)} is not supported")
    return value


def flag(json: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = json.get(key)
    value = default if value is None else value
    if type(value) is not bool:
        raise ModelError(f"config.json: {key} must be true or false, not {brief(value)}")
    return value
