"""The OPT family (Zhang et al. 2022, arXiv 2205.01068).

Pre-layer norm, biases, ReLU, learned positions that start at the third row of the table::

    x = embed_tokens[ids] + embed_positions[positions + 2]
    x = x + out_proj(attention(q_proj, k_proj, v_proj of self_attn_layer_norm(x)))
    x = x + fc2(relu(fc1(final_layer_norm(x))))
    decoder.final_layer_norm(x)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.models.config import (
    ActivationName,
    Flag,
    Heads,
    Inner,
    LayerMemory,
    Layers,
    ModelConfig,
    No,
    Positive,
    Rate,
    Size,
    Width,
    Yes,
    Zero,
)
from rankwise.models.decoder import Decoder
from rankwise.models.decoder import Layer as LayerNames
from rankwise.models.family import Family, Loader, Peer
from rankwise.nn.activation import ACTIVATIONS
from rankwise.nn.attention import attend
from rankwise.nn.backbone import Backbone, Hook, Source
from rankwise.nn.batch import PackedBatch
from rankwise.nn.linear import Linear
from rankwise.nn.norms import NormWeights, layer_norm

TARGETS = ("q_proj", "v_proj")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OFFSET = 2
"""Offset of a text's first position in the position embeddings."""
NORM_EPS = 1e-5


class OPTConfig(ModelConfig):
    """Shape of an OPT model."""

    layer_name: ClassVar[str] = "decoder.layers.{}"
    passed_on: ClassVar[frozenset[str]] = frozenset(
        {"attn_dropout", "dropout", "layerdrop", "word_embed_proj_dim"}
    )

    vocab_size: Size = 50272
    max_positions: Size = Field(2048, alias="max_position_embeddings")
    d_model: Width = Field(768, alias="hidden_size")
    layers: Layers = Field(12, alias="num_hidden_layers")
    heads: Heads = Field(12, alias="num_attention_heads")
    d_ff: Inner = Field(3072, alias="ffn_dim")
    activation: ActivationName = Field("relu", alias="activation_function")
    attn_dropout: Rate = Field(0.0, alias="attention_dropout")
    dropout: Rate = 0.1
    head_std: Positive = Field(0.02, alias="init_std")
    enable_bias: Flag = True
    word_embed_proj_dim: Width | None = None
    do_layer_norm_before: Yes = True
    layer_norm_elementwise_affine: Yes = True
    no_final_norm: No = Field(False, alias="_remove_final_layer_norm")
    layerdrop: Zero = 0.0

    def check(self) -> None:
        """See `ModelConfig.check`."""
        self._check_heads("hidden_size", "num_attention_heads")
        if self.word_embed_proj_dim not in (None, self.d_model):
            what = f"word_embed_proj_dim must be hidden_size, {self.d_model} (nothing else is supported)"
            raise ModelError(f"config.json: {what}, not {self.word_embed_proj_dim}")

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Target module within a layer -> (in, out), in the order of the forward pass."""
        d, ff = self.d_model, self.d_ff
        return dict.fromkeys((*ATTENTION, "self_attn.out_proj"), (d, d)) | {"fc1": (d, ff), "fc2": (ff, d)}

    def parameters(self) -> int:
        """Parameters of the backbone, including embeddings and without any head."""
        d, linears = self.d_model, self.module_shapes().values()
        embeddings = (self.vocab_size + self.max_positions + OFFSET) * d
        biases = sum(n_out for _, n_out in linears) if self.enable_bias else 0
        return (
            embeddings + sum(n_in * n_out for n_in, n_out in linears) + biases + (2 * self.layers + 1) * 2 * d
        )

    def layer_memory(self) -> LayerMemory:
        """What a layer keeps per token."""
        return LayerMemory(
            heads=3 * self.d_model,
            activation=self.d_ff,
            widest=self.d_ff,
            masks=2 * self.d_model if self.dropout else 0,
            attention_masks=1 if self.attn_dropout else 0,
            same_input=dict.fromkeys(ATTENTION[1:], ATTENTION[0]),
        )


@dataclass(slots=True)
class _Layer:
    norm_1: NormWeights
    qkv: Linear  # (3 * d_model, d_model)
    out: Linear  # (d_model, d_model)
    norm_2: NormWeights
    fc: Linear  # (d_ff, d_model)
    fc_out: Linear  # (d_model, d_ff)


class OPT(Backbone):
    """A frozen OPT.

    Args:
        config: shape of the model.
        weights: source of the tensors, under transformers' names without `model.`.
        dtype: dtype of linear weights and matrix products.
        device: device for the model.
    """

    default_targets = TARGETS

    def __init__(
        self, config: OPTConfig, weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.d_model, self.max_positions = config.d_model, config.max_positions
        self.depth, self.head_std = config.layers, config.head_std
        self.has_dropout = max(config.attn_dropout, config.dropout) > 0
        self._activation = ACTIVATIONS[config.activation]
        loader = Loader(weights, dtype, self.device)
        rows = config.max_positions + OFFSET
        self.tokens = loader.tensor("decoder.embed_tokens.weight", config.vocab_size, config.d_model)
        self.positions = loader.tensor("decoder.embed_positions.weight", rows, config.d_model)[OFFSET:]
        self.layers = [_layer(loader, config, f"decoder.layers.{i}") for i in range(config.layers)]
        self.norm = loader.norm("decoder.final_layer_norm", config.d_model)

    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: the input of the first layer."""
        return self.tokens[packed.ids] + self.positions[packed.positions]

    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Apply layer i to x (tokens, d_model) float32. The last layer returns (texts, d_model)."""
        config, layer, pooled, name = self.config, self.layers[i], i == self.depth - 1, f"decoder.layers.{i}"
        qkv = hook.linear(layer.qkv, self._normed(x, layer.norm_1))  # (tokens, 3 * d_model)
        qkv = qkv.view(len(qkv), 3 * config.heads, -1)  # (tokens, 3 * heads, head_dim)
        mask = hook.mask(f"{name}.self_attn", config.heads, config.attn_dropout, pooled)
        attended = attend(packed, qkv, config.heads, mask, config.attn_dropout, pooled)  # (rows, d_model)
        x = x.index_select(0, packed.last) if pooled else x  # (rows, d_model)
        branch = hook.linear(layer.out, attended, pooled)
        x = hook.add(f"{name}.self_attn.resid", x, branch, config.dropout, pooled)
        hidden = hook.activated(layer.fc, self._normed(x, layer.norm_2), self._activation, pooled)
        branch = hook.linear(layer.fc_out, hidden, pooled)  # (rows, d_model)
        return hook.add(f"{name}.resid", x, branch, config.dropout, pooled)

    def normed(self, x: Tensor) -> Tensor:
        """Apply the final norm to x (texts, d_model) float32."""
        return layer_norm(x, self.norm, NORM_EPS, torch.float32)

    def linears(self) -> Iterator[Linear]:
        """All linear layers, in the order of the forward pass."""
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.fc, layer.fc_out)

    def _normed(self, x: Tensor, norm: NormWeights) -> Tensor:
        return layer_norm(x, norm, NORM_EPS, self.dtype)


def _layer(loader: Loader, config: OPTConfig, name: str) -> _Layer:
    shapes = config.layer_shapes()

    def linear(*modules: str) -> Linear:
        named = {f"{name}.{module}": shapes[module] for module in modules}
        return loader.linear(named, bias=config.enable_bias)

    return _Layer(
        norm_1=loader.norm(f"{name}.self_attn_layer_norm", config.d_model),
        qkv=linear(*ATTENTION),
        out=linear("self_attn.out_proj"),
        norm_2=loader.norm(f"{name}.final_layer_norm", config.d_model),
        fc=linear("fc1"),
        fc_out=linear("fc2"),
    )


def _decoder(config: OPTConfig) -> Decoder:
    return Decoder(
        tokens="decoder.embed_tokens.weight",
        positions="decoder.embed_positions.weight",
        first_position=OFFSET,
        layers=tuple(
            LayerNames(
                norm_1=f"{name}.self_attn_layer_norm",
                qkv=tuple(f"{name}.{module}" for module in ATTENTION),
                out=f"{name}.self_attn.out_proj",
                norm_2=f"{name}.final_layer_norm",
                up=(f"{name}.fc1",),
                down=f"{name}.fc2",
            )
            for name in (f"decoder.layers.{i}" for i in range(config.layers))
        ),
        norm="decoder.final_layer_norm",
        norm_eps=NORM_EPS,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=config.d_model // config.heads,
        activation=config.activation,
    )


def _published(d_model: int, layers: int, heads: int) -> dict[str, Any]:
    """config.json of Meta AI's OPT models."""
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "hidden_size": d_model,
        "word_embed_proj_dim": d_model,
        "ffn_dim": 4 * d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


FAMILY = Family(
    title="OPT",
    model_type="opt",
    config=OPTConfig,
    backbone=OPT,
    decoder=_decoder,
    prefix="model",
    architecture="OPTForSequenceClassification",
    embedding="decoder.embed_tokens",
    default_targets=TARGETS,
    known={
        "facebook/opt-125m": _published(768, 12, 12),
        "facebook/opt-1.3b": _published(2048, 24, 32),
    },
    peer=Peer(
        "OPTConfig",
        {
            "hidden_size": 48, "ffn_dim": 100, "num_hidden_layers": 3, "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
)  # fmt: skip
