"""The GPT-2 family (Radford et al. 2019).

Pre-layer norm, learned positions, biases everywhere. Checkpoints store linear weights as (in, out); the
backbone stores them as (out, in)::

    x = wte[ids] + wpe[positions]
    x = x + attn.c_proj(attention(attn.c_attn(ln_1(x))))     c_attn: query, key and value concatenated
    x = x + mlp.c_proj(gelu(mlp.c_fc(ln_2(x))))
    ln_f(x)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

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
    Word,
    Yes,
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

TARGETS = ("c_attn",)


class GPT2Config(ModelConfig):
    """Shape of a GPT-2 model."""

    layer_name: ClassVar[str] = "h.{}"
    renamed: ClassVar[Mapping[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    passed_on: ClassVar[frozenset[str]] = frozenset(
        {
            *("embd_dropout", "attn_dropout", "resid_dropout", "n_inner", "n_ctx", "summary_type"),
            *("summary_use_proj", "summary_proj_to_labels", "summary_first_dropout"),
        }
    )

    vocab_size: Size = 50257
    max_positions: Size = Field(1024, alias="n_positions")
    d_model: Width = Field(768, alias="n_embd")
    layers: Layers = Field(12, alias="n_layer")
    heads: Heads = Field(12, alias="n_head")
    n_inner: Inner | None = None
    activation: ActivationName = Field("gelu_new", alias="activation_function")
    norm_eps: Positive = Field(1e-5, alias="layer_norm_epsilon")
    embd_dropout: Rate = Field(0.1, alias="embd_pdrop")
    attn_dropout: Rate = Field(0.1, alias="attn_pdrop")
    resid_dropout: Rate = Field(0.1, alias="resid_pdrop")
    head_std: Positive = Field(0.02, alias="initializer_range")
    scale_attn_weights: Yes = True
    scale_attn_by_inverse_layer_idx: No = False
    reorder_and_upcast_attn: No = False
    add_cross_attention: No = False
    # Not used, only passed on.
    n_ctx: Size | None = None
    summary_type: Word | None = None
    summary_use_proj: Flag | None = None
    summary_proj_to_labels: Flag | None = None
    summary_first_dropout: Rate | None = None

    @property
    def d_ff(self) -> int:
        """Width of the MLP."""
        return self.n_inner or 4 * self.d_model

    def decisive(self) -> dict[str, Any]:
        """See `ModelConfig.decisive`."""
        return super().decisive() | {"d_ff": self.d_ff}

    def check(self) -> None:
        """See `ModelConfig.check`."""
        self._check_heads("n_embd", "n_head")

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Target module within a layer -> (in, out), in the order of the forward pass."""
        d, ff = self.d_model, self.d_ff
        return {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, ff), "mlp.c_proj": (ff, d)}

    def parameters(self) -> int:
        """Parameters of the backbone, including embeddings and without any head."""
        d, linears = self.d_model, self.module_shapes().values()
        embeddings, norms = (self.vocab_size + self.max_positions) * d, (2 * self.layers + 1) * 2 * d
        return embeddings + sum(n_in * n_out + n_out for n_in, n_out in linears) + norms

    def layer_memory(self) -> LayerMemory:
        """What a layer keeps per token; for the activation, its derivative."""
        return LayerMemory(
            heads=3 * self.d_model,
            activation=self.d_ff,
            widest=self.d_ff,
            masks=2 * self.d_model if self.resid_dropout else 0,
            attention_masks=1 if self.attn_dropout else 0,
        )


@dataclass(slots=True)
class _Layer:
    norm_1: NormWeights
    attn: Linear  # (3 * d_model, d_model)
    attn_out: Linear  # (d_model, d_model)
    norm_2: NormWeights
    fc: Linear  # (d_ff, d_model)
    fc_out: Linear  # (d_model, d_ff)


class GPT2(Backbone):
    """A frozen GPT-2.

    Args:
        config: shape of the model.
        weights: source of the tensors, under transformers' names without `transformer.`.
        dtype: dtype of linear weights and matrix products.
        device: device for the model.
    """

    default_targets = TARGETS

    def __init__(
        self, config: GPT2Config, weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.d_model, self.max_positions = config.d_model, config.max_positions
        self.depth, self.head_std = config.layers, config.head_std
        self.has_dropout = max(config.embd_dropout, config.attn_dropout, config.resid_dropout) > 0
        self._activation = ACTIVATIONS[config.activation]
        loader = Loader(weights, dtype, self.device)
        self.tokens = loader.tensor("wte.weight", config.vocab_size, config.d_model)
        self.positions = loader.tensor("wpe.weight", config.max_positions, config.d_model)
        self.layers = [_layer(loader, config, f"h.{i}") for i in range(config.layers)]
        self.norm = loader.norm("ln_f", config.d_model)

    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: the input of the first layer."""
        x = self.tokens[packed.ids] + self.positions[packed.positions]
        return hook.drop("embd", x, self.config.embd_dropout)

    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Apply layer i to x (tokens, d_model) float32. The last layer returns (texts, d_model)."""
        config, layer, pooled = self.config, self.layers[i], i == self.depth - 1
        qkv = hook.linear(layer.attn, self._normed(x, layer.norm_1))  # (tokens, 3 * d_model)
        qkv = qkv.view(len(qkv), 3 * config.heads, -1)  # (tokens, 3 * heads, head_dim)
        mask = hook.mask(f"h.{i}.attn", config.heads, config.attn_dropout, pooled)
        attended = attend(packed, qkv, config.heads, mask, config.attn_dropout, pooled)  # (rows, d_model)
        x = x.index_select(0, packed.last) if pooled else x  # (rows, d_model)
        branch = hook.linear(layer.attn_out, attended, pooled)
        x = hook.add(f"h.{i}.attn.resid", x, branch, config.resid_dropout, pooled)
        hidden = hook.activated(layer.fc, self._normed(x, layer.norm_2), self._activation, pooled)
        branch = hook.linear(layer.fc_out, hidden, pooled)  # (rows, d_model)
        return hook.add(f"h.{i}.mlp.resid", x, branch, config.resid_dropout, pooled)

    def normed(self, x: Tensor) -> Tensor:
        """Apply the final norm to x (texts, d_model) float32."""
        return layer_norm(x, self.norm, self.config.norm_eps, torch.float32)

    def linears(self) -> Iterator[Linear]:
        """All linear layers, in the order of the forward pass."""
        for layer in self.layers:
            yield from (layer.attn, layer.attn_out, layer.fc, layer.fc_out)

    def _normed(self, x: Tensor, norm: NormWeights) -> Tensor:
        return layer_norm(x, norm, self.config.norm_eps, self.dtype)


def _layer(loader: Loader, config: GPT2Config, name: str) -> _Layer:
    shapes = {f"{name}.{module}": shape for module, shape in config.layer_shapes().items()}
    attn, attn_out, fc, fc_out = (loader.linear({key: shapes[key]}, transposed=True) for key in shapes)
    norm_1, norm_2 = (loader.norm(f"{name}.{norm}", config.d_model) for norm in ("ln_1", "ln_2"))
    return _Layer(norm_1, attn, attn_out, norm_2, fc, fc_out)


def _decoder(config: GPT2Config) -> Decoder:
    return Decoder(
        tokens="wte.weight",
        positions="wpe.weight",
        layers=tuple(
            LayerNames(
                norm_1=f"h.{i}.ln_1",
                qkv=(f"h.{i}.attn.c_attn",),
                out=f"h.{i}.attn.c_proj",
                norm_2=f"h.{i}.ln_2",
                up=(f"h.{i}.mlp.c_fc",),
                down=f"h.{i}.mlp.c_proj",
            )
            for i in range(config.layers)
        ),
        norm="ln_f",
        norm_eps=config.norm_eps,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=config.d_model // config.heads,
        activation=config.activation,
    )


def _published(d_model: int, layers: int, heads: int) -> dict[str, Any]:
    """config.json of OpenAI's GPT-2 models and DistilGPT-2."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": d_model,
        "n_layer": layers,
        "n_head": heads,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }


_SIZES = {
    "gpt2": _published(768, 12, 12),
    "gpt2-medium": _published(1024, 24, 16),
    "gpt2-large": _published(1280, 36, 20),
    "gpt2-xl": _published(1600, 48, 25),
}
_DISTILLED = _published(768, 6, 12)

FAMILY = Family(
    title="GPT-2",
    model_type="gpt2",
    config=GPT2Config,
    backbone=GPT2,
    decoder=_decoder,
    prefix="transformer",
    architecture="GPT2ForSequenceClassification",
    embedding="wte",
    default_targets=TARGETS,
    fan_in_fan_out=True,
    known={
        **_SIZES,
        "distilgpt2": _DISTILLED,
        **{f"openai-community/{name}": size for name, size in _SIZES.items()},
        "distilbert/distilgpt2": _DISTILLED,
    },
    peer=Peer("GPT2Config", {"n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}),
)
