"""The Qwen2 family (Yang et al. 2024, arXiv 2407.10671): Llama with biases only on query, key and value."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any, ClassVar, Self

from pydantic import Field

from rankwise.errors import ModelError
from rankwise.models.config import Heads, Items, No, Size, Whole
from rankwise.models.family import Family, Peer
from rankwise.models.llama import ATTENTION, SMALL, TARGETS, Llama, LlamaConfig, decoder


class Qwen2Config(LlamaConfig):
    """Shape of a Qwen2 model."""

    passed_on: ClassVar[frozenset[str]] = LlamaConfig.passed_on | {
        *("attention_bias", "mlp_bias", "layer_types", "sliding_window", "max_window_layers"),
        "use_sliding_window",
    }

    max_positions: Size = Field(32768, alias="max_position_embeddings")
    num_key_value_heads: Heads | None = 32
    use_sliding_window: No = False
    layer_types: Items | None = None
    # These two have no effect without a sliding window; they are only passed on.
    sliding_window: Whole | None = None
    max_window_layers: Whole | None = None

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Self:
        """See `ModelConfig.from_json`; for key-value heads, null does not count as missing."""
        if "num_key_value_heads" in json and json["num_key_value_heads"] is None:
            json = {**json, "num_key_value_heads": json.get("num_attention_heads")}
        return super().from_json(json)

    def check(self) -> None:
        """See `ModelConfig.check`."""
        super().check()
        if odd := next((each for each in self.layer_types or () if each != "full_attention"), None):
            raise ModelError(f"config.json: layer_types must be full_attention throughout, not {brief(odd)}")
        if self.layer_types is not None and len(self.layer_types) != self.layers:
            what = f"layer_types has {len(self.layer_types)} entries, and num_hidden_layers is {self.layers}"
            raise ModelError(f"config.json: {what}")

    def has_bias(self, module: str) -> bool:
        """Whether the target module's linear layer has a bias."""
        return module.endswith(ATTENTION)


_QWEN2_5: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "pad_token_id": 151643,
}

FAMILY = Family(
    title="Qwen2",
    model_type="qwen2",
    config=Qwen2Config,
    backbone=Llama,
    decoder=decoder,
    prefix="model",
    architecture="Qwen2ForSequenceClassification",
    embedding="embed_tokens",
    default_targets=TARGETS,
    known={"Qwen/Qwen2.5-0.5B": _QWEN2_5},
    peer=Peer("Qwen2Config", SMALL),
)
