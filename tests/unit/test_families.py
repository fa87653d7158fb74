"""All families: configs match transformers or are rejected by name; the contributor checklist holds."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bench import memory
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rankwise.errors import ModelError
from rankwise.models.config import ModelConfig
from rankwise.models.registry import FAMILIES, KNOWN, family_of, parse_config
from rankwise.nn.bank import layer_of
from rankwise.nn.rotary import frequencies
from tests.parity.peers import SMALL
from tests.parity.test_model import CASES

ROOT = Path(__file__).parents[2]
LLAMA = {"model_type": "llama", **SMALL["llama"]}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NEOX = {"model_type": "gpt_neox", **SMALL["gpt_neox"]}
OPT = {"model_type": "opt", **SMALL["opt"]}
family = pytest.mark.parametrize("name", FAMILIES)


def theirs(json: dict[str, Any]) -> Any:
    """transformers' config object for a config.json."""
    return transformers.AutoConfig.for_model(**deepcopy(json))  # it modifies its arguments


# Same as transformers


def required(config: type[ModelConfig]) -> dict[str, Any]:
    """The family's small config without settings that have defaults."""
    keys = [field.alias or name for name, field in config.model_fields.items() if field.is_required()]
    values = SMALL[family_name(config)] | {"vocab_size": 500, "hidden_size": 96}
    return {key: values[key] for key in keys}


def family_name(config: type[ModelConfig]) -> str:
    return next(name for name, family in FAMILIES.items() if family.config is config)


@family
def test_defaults_are_transformers_own(name: str) -> None:
    kind = FAMILIES[name].config
    json = {"model_type": name, **required(kind)}
    if name == "qwen2":
        json["num_attention_heads"] = json["num_key_value_heads"] = 6
    ours, other = parse_config(json), theirs(json)
    compared = []
    for field, info in kind.model_fields.items():
        key, value = info.alias or field, getattr(ours, field)
        if value is not None and hasattr(other, key) and key not in ("rope_theta", "rotary_pct"):
            compared.append(key)
            assert value == getattr(other, key), key
    assert len(compared) > 8


@family
def test_transformers_own_configs_pass_and_are_handed_on(name: str) -> None:
    config = getattr(transformers, FAMILIES[name].peer.config)(**SMALL[name], eos_token_id=[1, 2])
    json = config.to_dict()
    kept = FAMILIES[name].config.known(json)
    assert parse_config(kept) == parse_config(json)
    again = type(config)(**{key: value for key, value in kept.items() if key != "model_type"})
    shape = [key for key in kept if hasattr(config, key) and key not in ("dtype", "transformers_version")]
    assert len(shape) > 12 and all(getattr(again, key) == getattr(config, key) for key in shape)


ALIASES: list[dict[str, Any]] = [
    {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64},
    {"hidden_size": 48, "n_embd": 48, "num_attention_heads": 4},
    {"n_embd": None, "hidden_size": 48, "n_head": 6, "num_attention_heads": None},
]


@pytest.mark.parametrize("changes", ALIASES)
def test_the_other_names_of_gpt2s_settings(changes: dict[str, Any]) -> None:
    ours = parse_config({"model_type": "gpt2", **changes})
    given = {key: value for key, value in changes.items() if value is not None}
    other = theirs({"model_type": "gpt2", **given})
    found = ours.d_model, ours.layers, ours.heads, ours.max_positions
    assert found == (other.n_embd, other.n_layer, other.n_head, other.n_positions)


ROTARY: dict[str, dict[str, Any]] = {
    "default": LLAMA,
    "theta as it was": LLAMA | {"rope_theta": 5e5},
    "theta as it is": LLAMA | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    "theta in both places": LLAMA | {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 5e5}},
    "an empty table": LLAMA | {"rope_theta": 5e5, "rope_scaling": {}},
    "llama3": LLAMA | {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16}, "rope_theta": 5e5},
    "llama3 by its old name": LLAMA
    | {"rope_scaling": {"type": "llama3", **LLAMA3, "original_max_position_embeddings": 16}},
    "llama3 without a length": LLAMA | {"rope_scaling": LLAMA3},
    "llama3 with its length beside it": LLAMA
    | {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
    "both tables alike": LLAMA | {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3},
    "qwen2": {"model_type": "qwen2", **SMALL["qwen2"], "rope_theta": 1e6},
    "neox": {"model_type": "gpt_neox", **SMALL["gpt_neox"]},
    "neox as it was": NEOX | {"rotary_pct": 0.34, "rotary_emb_base": 500},
    "neox as it is": NEOX | {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0}},
    "neox by default": {key: value for key, value in NEOX.items() if key != "rotary_pct"}
    | {"hidden_size": 64},
}


@pytest.mark.parametrize("case", ROTARY)
def test_rotary_settings(case: str) -> None:
    ours: Any = parse_config(ROTARY[case])
    other = theirs(ROTARY[case])
    peer: Any = GPTNeoXRotaryEmbedding if "neox" in case else LlamaRotaryEmbedding
    torch.testing.assert_close(
        frequencies(ours.rotary, ours.head_dim), peer(other).inv_freq, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("heads", [{}, {"num_key_value_heads": None}, {"num_key_value_heads": 4}])
def test_key_value_heads_of_qwen2(heads: dict[str, Any]) -> None:
    json = {"model_type": "qwen2", **SMALL["qwen2"], "hidden_size": 64, "num_attention_heads": 32}
    del json["num_key_value_heads"]
    ours: Any = parse_config(json | heads)
    assert ours.kv_heads == theirs(json | heads).num_key_value_heads


def test_null_counts_as_missing() -> None:
    config: Any = parse_config({"model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_inner": None})
    assert config.d_ff == 96


# Rejected by name

GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_head": 3}
BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (GPT2, {"model_type": "bert"}, "model_type 'bert' is not supported"),
    (GPT2, {"model_type": None}, "model_type None is not supported"),
    (GPT2, {"n_embd": 25}, "n_embd 25 is not a multiple of n_head 3"),
    (GPT2, {"n_embd": True}, "n_embd must be a whole number from 1 to 131072, not True"),
    (GPT2, {"n_embd": 24.0}, "n_embd must be a whole number"),
    (GPT2, {"n_layer": 0}, "n_layer must be a whole number"),
    (GPT2, {"n_layer": 10**9}, "n_layer must be a whole number from 1 to 1024, not 1000000000"),
    (GPT2, {"n_head": "3"}, "n_head must be a whole number from 1 to 4096, not '3'"),
    (GPT2, {"vocab_size": 1.5}, "vocab_size must be a whole number"),
    (GPT2, {"attn_pdrop": 1.0}, "attn_pdrop must be a number from 0 to below 1, not 1.0"),
    (GPT2, {"embd_pdrop": "0.1"}, "embd_pdrop must be a number"),
    (GPT2, {"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a positive number"),
    (GPT2, {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a positive number"),
    (
        GPT2,
        {"activation_function": "eval"},
        "activation_function must be one of .*no other is supported.*'eval'",
    ),
    (GPT2, {"activation_function": ["gelu"]}, "no other is supported"),
    (GPT2, {"scale_attn_weights": False}, r"scale_attn_weights must be true \(nothing else is supported\)"),
    (GPT2, {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn must be false"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be false"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention must be false"),
    (GPT2, {"hidden_size": 48}, "n_embd = 24 and hidden_size = 48 contradict each other"),
    (GPT2, {"num_attention_heads": "3"}, "contradict each other"),
    (GPT2, {"use_cache": 1}, "use_cache must be true or false, not 1"),
    (GPT2, {"bos_token_id": "0"}, "bos_token_id must be a whole number or a list of whole numbers, not '0'"),
    (GPT2, {"architectures": "GPT2"}, "architectures must be a list"),
    (LLAMA, {"hidden_size": None}, "hidden_size must be a whole number from 1 to 131072, but is missing"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act must be silu"),
    (LLAMA, {"num_key_value_heads": 4}, "6 heads, 4 key-value heads of size 8 do not match"),
    (LLAMA, {"head_dim": 5}, "key-value heads of size 5 do not match"),
    (LLAMA, {"hidden_size": 50}, "hidden_size 50 is not a multiple of num_attention_heads 6"),
    (LLAMA, {"attention_bias": 1}, "attention_bias must be true or false"),
    (LLAMA, {"rope_scaling": "linear"}, "rope_scaling must be an object, not 'linear'"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary type 'linear' is not supported"),
    (LLAMA, {"rope_parameters": {"rope_type": "yarn"}}, "rotary type 'yarn' is not supported"),
    (LLAMA, {"rope_parameters": {"rope_type": 3}}, "rope_parameters.rope_type must be a string"),
    (LLAMA, {"rope_parameters": LLAMA3 | {"factor": -1}}, "rope_parameters.factor must be a positive number"),
    (LLAMA, {"rope_parameters": {"rope_type": "llama3"}}, "rotary type llama3 needs factor"),
    (LLAMA, {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor must be above"),
    (LLAMA, {"rope_theta": float("inf")}, "rope_theta must be a positive number"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
    (
        LLAMA,
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e5}},
        "rope_theta = 10000.0 and rope_param",
    ),
    (LLAMA, {"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 1e5}}, "contradict each other"),
    (
        LLAMA,
        {"rope_scaling": LLAMA3 | {"type": "default"}},
        "rope_type = 'llama3' and type = 'default' contra",
    ),
    (
        LLAMA,
        {
            "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16},
            "original_max_position_embeddings": 32,
        },
        "original_max_position_embeddings = 32 contradict each other",
    ),
    (LLAMA, {"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window must be false"),
    (
        LLAMA,
        {"model_type": "qwen2", "layer_types": ["sliding_attention"]},
        "layer_types must be full_attention",
    ),
    (NEOX, {"rotary_pct": 0.1}, "rotary_pct 0.1 of head size 12 rotates 1 dimensions"),
    (NEOX, {"rotary_pct": 1.5}, "rotary_pct must be a number above 0 and up to 1, not 1.5"),
    (
        NEOX,
        {"rope_parameters": {"partial_rotary_factor": 0.25}},
        "rotary_pct = 0.5 and rope_parameters.partial",
    ),
    (NEOX, {"hidden_size": 50}, "hidden_size 50 is not a multiple"),
    (
        OPT,
        {"do_layer_norm_before": False},
        r"do_layer_norm_before must be true \(nothing else is supported\)",
    ),
    (OPT, {"word_embed_proj_dim": 24}, "word_embed_proj_dim must be hidden_size, 48"),
    (OPT, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm must be false"),
    (OPT, {"layerdrop": 0.1}, "layerdrop must be 0"),
    (OPT, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine must be true"),
]


@pytest.mark.parametrize(("json", "changes", "message"), BAD)
def test_bad_configs(json: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    parse_config(json)
    with pytest.raises(ModelError, match=message) as caught:
        parse_config(json | changes)
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize(
    ("key", "most"), [("n_layer", 1024), ("vocab_size", 1 << 24), ("n_positions", 1 << 24)]
)
def test_sizes_have_bounds(key: str, most: int) -> None:
    parse_config(GPT2 | {key: most})
    for value in (most + 1, 10**4000):
        with pytest.raises(ModelError, match=f"{key} must be a whole number from 1 to {most}, not "):
            parse_config(GPT2 | {key: value})


def test_only_known_keys_are_handed_on() -> None:
    kept = FAMILIES["gpt2"].config.known(
        {"n_inner": None, "auto_map": {"AutoModel": "x.Y"}, "x": 1, "n_head": 3}
    )
    assert kept == {"n_inner": None, "n_head": 3}


# The checklist of CONTRIBUTING.md, "Add a model family"


@family
def test_names_of_layers(name: str) -> None:
    """The family's pattern and the bank's rule agree on all target modules."""
    config = parse_config({"model_type": name, "vocab_size": 500, **SMALL[name]})
    for module in config.module_shapes():
        assert config.layer_of(module) == layer_of(module)
    assert {config.layer_of(module) for module in config.module_shapes()} == set(range(config.layers))


@family
def test_names_are_transformers_own(name: str) -> None:
    found = FAMILIES[name]
    config = getattr(transformers, found.peer.config)(**SMALL[name], pad_token_id=0)
    made: Any = transformers.AutoModelForSequenceClassification
    model = made.from_config(config)
    assert type(model).__name__ == found.architecture
    assert model.base_model_prefix == found.prefix
    table = model.get_input_embeddings().weight
    assert dict(model.named_parameters())[f"{found.prefix}.{found.embedding}.weight"] is table
    modules = dict(model.named_modules())
    ours = parse_config({"model_type": name, "vocab_size": 500, **SMALL[name]}).module_shapes()
    for module, (n_in, n_out) in ours.items():
        shape = (n_in, n_out) if found.fan_in_fan_out else (n_out, n_in)
        assert tuple(modules[f"{found.prefix}.{module}"].weight.shape) == shape


@family
def test_default_targets_are_pefts_own(name: str) -> None:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as mapping

    assert list(FAMILIES[name].default_targets) == mapping[name]


@family
def test_every_family_is_compared_with_its_peer(name: str) -> None:
    assert {targets if isinstance(targets, str) else None for family, targets in CASES if family == name} >= {
        None,
        "all-linear",
    }


@family
def test_every_family_has_a_memory_case_that_nothing_was_fitted_to(name: str) -> None:
    assert name in {family_of(KNOWN[case.base]).model_type for case in memory.CHECKED}


@family
@pytest.mark.parametrize("page", ["docs/guide/training.md", "docs/concepts.md", "CHANGELOG.md"])
def test_every_family_is_mentioned(name: str, page: str) -> None:
    assert FAMILIES[name].title in (ROOT / page).read_text("utf-8")


def test_no_other_module_names_a_family() -> None:
    """A new family needs no other file. Names of specific models may appear elsewhere."""
    types, classes = "|".join(FAMILIES), "|".join(each.config.__name__ for each in FAMILIES.values())
    words = re.compile(rf"[\"'](?:{types})[\"']|\b(?:{classes})\b")
    own = {f"models/{name}.py" for name in FAMILIES} | {"models/gguf.py", "report/card.py"}
    package = ROOT / "src" / "rankwise"
    naming = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if words.search(path.read_text("utf-8")) and str(path.relative_to(package)) not in own
    ]
    assert naming == []


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_are_read(name: str) -> None:
    assert parse_config(KNOWN[name]).parameters() > 4e7


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("EleutherAI/pythia-70m", 18_915_328), ("EleutherAI/pythia-160m", 85_056_000),
     ("EleutherAI/pythia-410m", 302_311_424), ("EleutherAI/pythia-1b", 805_736_448)],
)  # fmt: skip
def test_pythia_has_its_published_parameters(name: str, parameters: int) -> None:
    """Without embeddings, as counted by its authors."""
    config = parse_config(KNOWN[name])
    assert config.parameters() - config.vocab_size * config.d_model == parameters


@pytest.mark.parametrize(
    ("name", "parameters"), [("facebook/opt-125m", 125_239_296), ("Qwen/Qwen2.5-0.5B", 494_032_768)]
)
def test_others_have_their_published_parameters(name: str, parameters: int) -> None:
    """With tied embeddings, which are counted once."""
    assert parse_config(KNOWN[name]).parameters() == parameters
