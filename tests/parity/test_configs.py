"""A config.json gives the hidden states of transformers' model of it, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rankwise.errors import ModelError
from rankwise.models import registry
from rankwise.models.registry import FAMILIES
from rankwise.nn.bank import HEAD, AdapterSpec, Bank
from rankwise.nn.inference import bank_logits
from tests.parity.peers import SMALL, StateDict

Json = dict[str, Any]
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD_LLAMA3 = {"type": "llama3"} | {key: value for key, value in LLAMA3.items() if key != "rope_type"}
IDS = np.array([3, 5, 7, 2, 9, 11, 4, 8, 60, 61, 62, 63])


def json_of(family: str, changes: Json) -> Json:
    """The family's small config with changes; `...` removes a key."""
    merged = {"model_type": family, **SMALL[family], **changes}
    return {key: value for key, value in merged.items() if value is not ...}


def states(json_config: Json, folder: Path) -> tuple[Any, Any]:
    """(theirs, ours): the hidden state of the last token, with the same random weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(json_config))
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    loader: Any = transformers.AutoModel
    model = loader.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(IDS)[None]).last_hidden_state[0, -1].numpy()
    backbone = registry.build(json_config, StateDict(model, "none"), torch.float32)
    width = backbone.d_model
    bank = Bank([AdapterSpec(0, 1.0, 0.0, 0, 0.0, ())], backbone.modules(), width, width)
    bank.load(0, {HEAD: torch.eye(width)})
    return theirs, bank_logits(backbone, bank, [IDS])[0][0]


ROTARY: dict[str, Json] = {
    "theta": {"rope_theta": 500.0},
    "theta, a whole number": {"rope_theta": 500},
    "theta in the old table": {"rope_scaling": {"rope_theta": 500.0, "type": "default"}},
    "theta in the new table": {"rope_parameters": {"rope_theta": 500.0}},
    "llama3": {"rope_parameters": LLAMA3},
    "llama3 by its old names": {"rope_scaling": OLD_LLAMA3},
    "llama3, length beside the table": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 16},
    "llama3, length in the table": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 16}},
    "theta beside llama3": {"rope_theta": 500.0, "rope_scaling": LLAMA3},
    "both tables alike": {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3},
    "an empty table and another": {"rope_parameters": {}, "rope_scaling": LLAMA3},
    "no table and another": {"rope_parameters": None, "rope_scaling": LLAMA3},
    "settings without effect": {"rope_parameters": {"rope_type": "default", "factor": 3.0, "mscale": 2.0}},
    "attention_factor": {"rope_parameters": LLAMA3 | {"attention_factor": 2.0}},
    "names of other families": {"rotary_dim": 4, "n_head": 3, "activation_function": "relu", "n_layer": 1},
    "head_dim is null": {"num_key_value_heads": 2, "head_dim": None},
    "a sliding window that is off": {"sliding_window": 4},
}
OTHERS: list[tuple[str, Json]] = [
    (
        "gpt2",
        {"n_head": ..., "n_embd": ..., "n_layer": ..., "n_positions": ..., "num_attention_heads": 4}
        | {"hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 32},
    ),
    ("gpt2", {"head_dim": 6, "hidden_act": "relu", "layer_norm_eps": 0.1, "intermediate_size": 96}),
    ("gpt2", {"n_inner": 96, "activation_function": "gelu", "layer_norm_epsilon": 0.1}),
    ("llama", {"head_dim": 16, "rms_norm_eps": 0.1, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": ..., "layer_types": ["full_attention"] * 3}),
    ("llama", {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}}),
    ("qwen2", {"head_dim": 16, "layer_types": ["full_attention"] * 3, "num_key_value_heads": 6}),
    ("gpt_neox", {"rotary_emb_base": 500, "rope_theta": 7.0, "partial_rotary_factor": 1.0}),
    ("gpt_neox", {"head_dim": 12, "use_parallel_residual": False, "attention_bias": False}),
    ("opt", {"intermediate_size": 50, "initializer_range": 0.5, "hidden_act": "gelu", "head_dim": 6}),
    ("opt", {"activation_function": "gelu", "enable_bias": False, "word_embed_proj_dim": None}),
]
READ = [
    *((family, ROTARY[case]) for family in ("llama", "qwen2", "gpt_neox") for case in ROTARY
      if not (family != "llama" and case == "head_dim is null")),
    *OTHERS,
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), READ, ids=lambda value: str(value)[:60])
def test_configs_are_read_as_transformers_reads_them(family: str, changes: Json, tmp_path: Path) -> None:
    theirs, ours = states(json_of(family, changes), tmp_path / "model")
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


REFUSED: list[tuple[str, Json, str]] = [
    ("gpt2", {"num_attention_heads": 6}, "n_head = 4 and num_attention_heads = 6 contradict each other"),
    ("gpt2", {"is_causal": False}, "is_causal must be true"),
    ("llama", {"is_causal": None}, "is_causal must be true"),
    ("opt", {"per_layer_config": {"0": {"ffn_dim": 8}}}, "per_layer_config must be null, false or empty"),
    (
        "llama",
        {"rope_scaling": {"mscale": 1}, "rope_parameters": {"rope_theta": 500.0}},
        "contradict each other: mscale is missing in the first and 1 in the second",
    ),
    (
        "qwen2",
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 500.0}},
        "contradict each other: rope_theta is 500.0 in the first and missing in the second",
    ),
    (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_theta": 500.0, "rope_type": "default"}}},
        "rope_parameters.full_attention: settings for each type of layer",
    ),
    ("qwen2", {"layer_types": ["full_attention"] * 2}, "layer_types has 2 entries"),
    ("gpt_neox", {"head_dim": 16}, "head_dim must be 12, hidden_size / num_attention_heads"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_configs_that_are_refused(family: str, changes: Json, message: str) -> None:
    with pytest.raises(ModelError, match=f"config.json: .*{message}"):
        registry.parse_config(json_of(family, changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_names_of_settings_are_transformers_own(family: str) -> None:
    """Each name in transformers' attribute_map is read, and one that contradicts the other is refused."""
    config = getattr(transformers, FAMILIES[family].peer.config)
    assert dict(FAMILIES[family].config.renamed) == dict(config.attribute_map)
    for other, key in config.attribute_map.items():
        json_config = json_of(family, {})
        value = json_config.get(key, 7)
        assert registry.parse_config(json_of(family, {key: ..., other: value})) == registry.parse_config(
            json_config | {key: value}
        )
        with pytest.raises(ModelError, match="contradict each other"):
            registry.parse_config(json_config | {key: value, other: value + 1})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_logits_depend_on(family: str) -> None:
    """Names and dropout do not count; every setting of the backbone does."""
    plain = registry.parse_config(json_of(family, {})).decisive()
    same = {"dtype": "bfloat16", "attention_dropout": 0.3, "attn_pdrop": 0.3, "eos_token_id": 7}
    assert registry.parse_config(json_of(family, same)).decisive() == plain
    changes: list[Json] = [{"vocab_size": 501}]
    if "rope_parameters" in FAMILIES[family].config.model_fields:
        changes += [{"rope_parameters": {"rope_theta": 7.0}}, {"rope_scaling": LLAMA3}]
    if family == "gpt2":
        changes += [
            {"n_head": 6},
            {"n_inner": 50},
            {"layer_norm_epsilon": 0.1},
            {"activation_function": "gelu"},
        ]
        assert registry.parse_config(json_of(family, {"n_inner": 4 * 48})).decisive() == plain
    for change in changes:
        assert registry.parse_config(json_of(family, change)).decisive() != plain, change
