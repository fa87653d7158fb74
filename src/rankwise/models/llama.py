"""The Llama family (Touvron et al. 2023, arXiv 2302.13971).

RMS norm, rotary positions, grouped-query attention, SwiGLU::

    x = embed_tokens[ids]
    x = x + o_proj(attention(rotate(q_proj, k_proj, v_proj of input_layernorm(x))))
    x = x + down_proj(silu(gate_proj(h)) * up_proj(h))       h = post_attention_layernorm(x)
    norm(x)

Query, key and value have the same input and are fused into one matrix, as are gate and up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.models.config import (
    Flag,
    Heads,
    Inner,
    LayerMemory,
    Layers,
    ModelConfig,
    Positive,
    Rate,
    Share,
    Size,
    Table,
    Whole,
    Width,
    one_of,
    scaling_of,
    table_of,
)
from rankwise.models.decoder import Decoder
from rankwise.models.decoder import Layer as LayerNames
from rankwise.models.family import Family, Loader, Peer
from rankwise.nn.activation import swiglu
from rankwise.nn.attention import attend
from rankwise.nn.backbone import Backbone, Hook, Source
from rankwise.nn.batch import PackedBatch
from rankwise.nn.linear import Linear
from rankwise.nn.norms import rms_norm
from rankwise.nn.rotary import Rotary, frequencies, rotate, rotation

TARGETS = ("q_proj", "v_proj")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
ROTARY_KEYS = (
    *("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"),
    "original_max_position_embeddings",
)
"""Settings that `rotary` combines."""
_Activation = Annotated[Literal["silu"], Field(description="silu (no other is supported)")]


class LlamaConfig(ModelConfig):
    """Shape of a Llama model."""

    layer_name: ClassVar[str] = "layers.{}"
    passed_on: ClassVar[frozenset[str]] = frozenset(
        {"attn_dropout", "num_key_value_heads", "head_size", "pretraining_tp", *ROTARY_KEYS}
    )

    vocab_size: Size
    max_positions: Size = Field(2048, alias="max_position_embeddings")
    d_model: Width = Field(alias="hidden_size")
    layers: Layers = Field(alias="num_hidden_layers")
    heads: Heads = Field(alias="num_attention_heads")
    num_key_value_heads: Heads | None = None
    head_size: Width | None = Field(None, alias="head_dim")
    d_ff: Inner = Field(alias="intermediate_size")
    activation: _Activation = Field("silu", alias="hidden_act")
    norm_eps: Positive = Field(1e-6, alias="rms_norm_eps")
    attn_dropout: Rate = Field(0.0, alias="attention_dropout")
    head_std: Positive = Field(0.02, alias="initializer_range")
    attention_bias: Flag = False
    mlp_bias: Flag = False
    # transformers 5 has one table of rotary settings; older versions use two keys.
    rope_parameters: Table | None = None
    rope_scaling: Table | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Share | None = None
    original_max_position_embeddings: Size | None = None
    # Not used, only passed on.
    pretraining_tp: Whole | None = None

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.num_key_value_heads or self.heads

    @property
    def head_dim(self) -> int:
        """Head dimension."""
        return self.head_size or max(1, self.d_model // self.heads)

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases."""
        return self.attention_bias

    @property
    def out_bias(self) -> bool:
        """Whether the attention output projection has a bias."""
        return self.attention_bias

    @property
    def rotary(self) -> Rotary:
        """The rotary settings."""
        table = table_of(self.rope_parameters, self.rope_scaling)
        theta = one_of(
            {"rope_theta": self.rope_theta, "rope_parameters.rope_theta": table.rope_theta}, 10000.0
        )
        share = table.partial_rotary_factor or self.partial_rotary_factor or 1.0
        if share != 1.0:
            raise ModelError(f"config.json: partial_rotary_factor must be 1 in this family, not {share}")
        return Rotary(
            theta, 1.0, scaling_of(table, self.max_positions, self.original_max_position_embeddings)
        )

    def decisive(self) -> dict[str, Any]:
        """See `ModelConfig.decisive`."""
        heads = {"kv_heads": self.kv_heads, "head_dim": self.head_dim}
        return super().decisive() | heads | {"rotary": asdict(self.rotary)}

    def check(self) -> None:
        """See `ModelConfig.check`."""
        if self.heads % self.kv_heads or self.head_dim % 2:
            what = f"{self.heads} heads, {self.kv_heads} key-value heads of size {self.head_dim}"
            raise ModelError(f"config.json: {what} do not match")
        self._check_heads("hidden_size", "num_attention_heads")
        _ = self.rotary

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Target module within a layer -> (in, out), in the order of the forward pass."""
        d, q, kv = self.d_model, self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = dict(zip(ATTENTION, ((d, q), (d, kv), (d, kv)), strict=True)) | {"self_attn.o_proj": (q, d)}
        return shapes | dict.fromkeys(MLP, (d, self.d_ff)) | {"mlp.down_proj": (self.d_ff, d)}

    def parameters(self) -> int:
        """Parameters of the backbone, including embeddings and without any head."""
        linears = self.module_shapes().items()
        biases = sum(n_out for module, (_, n_out) in linears if self.has_bias(module))
        norms = (2 * self.layers + 1) * self.d_model
        matrices = sum(n_in * n_out for _, (n_in, n_out) in linears)
        return self.vocab_size * self.d_model + matrices + biases + norms

    def has_bias(self, module: str) -> bool:
        """Whether the target module's linear layer has a bias."""
        if module.endswith(ATTENTION):
            return self.qkv_bias
        return self.out_bias if module.endswith("o_proj") else self.mlp_bias

    def layer_memory(self) -> LayerMemory:
        """What a layer keeps per token; for the activation, gate and up."""
        return LayerMemory(
            heads=(self.heads + 2 * self.kv_heads) * self.head_dim,
            activation=2 * self.d_ff,
            widest=2 * self.d_ff,
            attention_masks=1 if self.attn_dropout else 0,
            same_input=dict.fromkeys(ATTENTION[1:], ATTENTION[0]) | {MLP[1]: MLP[0]},
        )


@dataclass(slots=True)
class _Layer:
    norm_1: Tensor  # (d_model,) float32
    qkv: Linear  # ((heads + 2 * kv_heads) * head_dim, d_model)
    out: Linear  # (d_model, heads * head_dim)
    norm_2: Tensor
    gate_up: Linear  # (2 * d_ff, d_model)
    down: Linear  # (d_model, d_ff)


class Llama(Backbone):
    """A frozen Llama, or a model with the same architecture.

    Args:
        config: shape of the model.
        weights: source of the tensors, under transformers' names without `model.`.
        dtype: dtype of linear weights and matrix products.
        device: device for the model.
    """

    default_targets = TARGETS

    def __init__(
        self, config: LlamaConfig, weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.d_model, self.max_positions = config.d_model, config.max_positions
        self.depth, self.head_std = config.layers, config.head_std
        self.has_dropout = config.attn_dropout > 0
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        loader = Loader(weights, dtype, self.device)
        self.tokens = loader.tensor("embed_tokens.weight", config.vocab_size, config.d_model)
        self.frequencies = frequencies(config.rotary, config.head_dim).to(self.device)
        self.layers = [_layer(loader, config, f"layers.{i}") for i in range(config.layers)]
        self.norm = loader.tensor("norm.weight", config.d_model)

    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: the input of the first layer."""
        return self.tokens[packed.ids]

    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Apply layer i to x (tokens, d_model) float32. The last layer returns (texts, d_model)."""
        layer, pooled, name, rate = (
            self.layers[i],
            i == self.depth - 1,
            f"layers.{i}",
            self.config.attn_dropout,
        )
        qkv = hook.linear(layer.qkv, self._normed(x, layer.norm_1))
        qkv = qkv.view(len(qkv), -1, self.head_dim)  # (tokens, heads + 2 * kv_heads, head_dim)
        turned = self.heads + self.kv_heads
        qkv = rotate(qkv, turned, *rotation(packed, self.frequencies, self.dtype))
        mask = hook.mask(f"{name}.self_attn", self.heads, rate, pooled)
        attended = attend(packed, qkv, self.heads, mask, rate, pooled)  # (rows, heads * head_dim)
        x = x.index_select(0, packed.last) if pooled else x  # (rows, d_model)
        x = hook.add(f"{name}.self_attn.resid", x, hook.linear(layer.out, attended, pooled), 0.0, pooled)
        hidden = hook.activated(layer.gate_up, self._normed(x, layer.norm_2), swiglu, pooled)  # (rows, d_ff)
        return hook.add(f"{name}.mlp.resid", x, hook.linear(layer.down, hidden, pooled), 0.0, pooled)

    def normed(self, x: Tensor) -> Tensor:
        """Apply the final norm to x (texts, d_model) float32."""
        return rms_norm(x, self.norm, self.config.norm_eps, torch.float32)

    def linears(self) -> Iterator[Linear]:
        """All linear layers, in the order of the forward pass."""
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self.config.norm_eps, self.dtype)


def _layer(loader: Loader, config: LlamaConfig, name: str) -> _Layer:
    shapes = config.layer_shapes()

    def linear(*modules: str) -> Linear:
        named = {f"{name}.{module}": shapes[module] for module in modules}
        return loader.linear(named, bias=config.has_bias(modules[0]))

    return _Layer(
        norm_1=loader.tensor(f"{name}.input_layernorm.weight", config.d_model),
        qkv=linear(*ATTENTION),
        out=linear("self_attn.o_proj"),
        norm_2=loader.tensor(f"{name}.post_attention_layernorm.weight", config.d_model),
        gate_up=linear(*MLP),
        down=linear("mlp.down_proj"),
    )


def decoder(config: LlamaConfig) -> Decoder:
    """What a Llama consists of, or a model with the same architecture."""
    return Decoder(
        tokens="embed_tokens.weight",
        layers=tuple(
            LayerNames(
                norm_1=f"{name}.input_layernorm",
                qkv=tuple(f"{name}.{module}" for module in ATTENTION),
                out=f"{name}.self_attn.o_proj",
                norm_2=f"{name}.post_attention_layernorm",
                up=tuple(f"{name}.{module}" for module in MLP),
                down=f"{name}.mlp.down_proj",
            )
            for name in (f"layers.{i}" for i in range(config.layers))
        ),
        norm="norm",
        norm_eps=config.norm_eps,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        activation=config.activation,
        rotary=config.rotary,
        rms=True,
        gated=True,
    )


SMOLLM2 = "smollm2-135m"
_SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "float32",
}

SMALL = {
    "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip

FAMILY = Family(
    title="Llama",
    model_type="llama",
    config=LlamaConfig,
    backbone=Llama,
    decoder=decoder,
    prefix="model",
    architecture="LlamaForSequenceClassification",
    embedding="embed_tokens",
    default_targets=TARGETS,
    known={SMOLLM2: _SMOLLM2},
    peer=Peer("LlamaConfig", SMALL),
)
