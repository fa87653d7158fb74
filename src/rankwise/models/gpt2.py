"""The GPT-2 family as a frozen backbone (Radford et al. 2019).

Layer norm before attention and before the MLP, learned positions, biases everywhere. The
checkpoints store linear weights as (in, out); the backbone holds them as (out, in).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.models.config import choice, count, fraction, positive
from rankwise.nn.activation import ACTIVATIONS
from rankwise.nn.attention import attend
from rankwise.nn.backbone import Backbone, Hook, Source
from rankwise.nn.batch import PackedBatch
from rankwise.nn.linear import Linear

MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class GPT2Config:
    """Shape of a GPT-2 model; the fields of transformers' GPT2Config that matter here."""

    vocab_size: int
    max_positions: int
    d_model: int
    layers: int
    heads: int
    d_ff: int
    activation: str
    norm_eps: float
    embd_dropout: float
    attn_dropout: float
    resid_dropout: float
    head_std: float

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Self:
        """The config from a model folder's config.json.

        Raises:
            ModelError: a value is missing, out of range, or asks for what this backbone does not do.
        """
        for unsupported in (
            "scale_attn_by_inverse_layer_idx",
            "reorder_and_upcast_attn",
            "add_cross_attention",
        ):
            if json.get(unsupported):
                raise ModelError(f"config.json: {unsupported} is not supported")
        if json.get("scale_attn_weights") is False:
            raise ModelError("config.json: scale_attn_weights = false is not supported")
        d_model, heads = count(json, "n_embd", 768), count(json, "n_head", 12)
        if d_model % heads:
            raise ModelError(f"config.json: n_embd {d_model} is not a multiple of n_head {heads}")
        return cls(
            vocab_size=count(json, "vocab_size", 50257),
            max_positions=count(json, "n_positions", 1024),
            d_model=d_model,
            layers=count(json, "n_layer", 12),
            heads=heads,
            d_ff=count(json, "n_inner", 4 * d_model),
            activation=choice(json, "activation_function", "gelu_new", ACTIVATIONS),
            norm_eps=positive(json, "layer_norm_epsilon", 1e-5),
            embd_dropout=fraction(json, "embd_pdrop", 0.1),
            attn_dropout=fraction(json, "attn_pdrop", 0.1),
            resid_dropout=fraction(json, "resid_pdrop", 0.1),
            head_std=positive(json, "initializer_range", 0.02),
        )

    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """Site name -> (in, out), in the order of the forward pass."""
        d, ff = self.d_model, self.d_ff
        shapes = {
            "attn.c_attn": (d, 3 * d),
            "attn.c_proj": (d, d),
            "mlp.c_fc": (d, ff),
            "mlp.c_proj": (ff, d),
        }
        return {f"h.{i}.{module}": shapes[module] for i in range(self.layers) for module in MODULES}

    def parameters(self) -> int:
        """Parameters of the backbone, embeddings included and without any head."""
        d, linears = self.d_model, self.module_shapes().values()
        return (
            (self.vocab_size + self.max_positions) * d
            + sum(n_in * n_out + n_out for n_in, n_out in linears)
            + (2 * self.layers + 1) * 2 * d
        )


@dataclass(slots=True)
class _Layer:
    norm_1: tuple[Tensor, Tensor]  # weight, bias: (d_model,) float32
    attn: Linear  # (3 * d_model, d_model)
    attn_out: Linear  # (d_model, d_model)
    norm_2: tuple[Tensor, Tensor]
    fc: Linear  # (d_ff, d_model)
    fc_out: Linear  # (d_model, d_ff)


class GPT2(Backbone):
    """A frozen GPT-2.

    Args:
        config: its shape.
        weights: where its tensors come from, under transformers' names without `transformer.`.
        dtype: of the linear weights and of matrix products.
        device: where it shall live.
    """

    default_targets = ("c_attn",)
    head_prefix = "transformer"

    def __init__(
        self, config: GPT2Config, weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.d_model, self.max_positions, self.head_std = (
            config.d_model,
            config.max_positions,
            config.head_std,
        )
        self._activation = ACTIVATIONS[config.activation]
        self._weights = weights
        self.tokens = self._take("wte.weight", config.vocab_size, config.d_model)
        self.positions = self._take("wpe.weight", config.max_positions, config.d_model)
        self.layers = [self._layer(i) for i in range(config.layers)]
        self.depth = len(self.layers)
        self.norm = self._norm("ln_f")
        del self._weights

    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: what goes into the first layer."""
        x = self.tokens[packed.ids] + self.positions[packed.positions]
        return hook.drop("embd", x, self.config.embd_dropout)

    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Layer i on x (tokens, d_model) float32; the last layer gives (texts, d_model)."""
        config, layer, pooled = self.config, self.layers[i], i == self.depth - 1
        qkv = hook.linear(layer.attn, self._normed(x, layer.norm_1))  # (tokens, 3 * d_model)
        qkv = qkv.view(len(qkv), 3 * config.heads, -1)  # (tokens, 3 * heads, head_dim)
        mask = hook.mask(f"h.{i}.attn", config.heads, config.attn_dropout, pooled)
        attended = attend(packed, qkv, config.heads, mask, config.attn_dropout, pooled)  # (rows, d_model)
        x = x.index_select(0, packed.last) if pooled else x
        branch = hook.linear(layer.attn_out, attended, pooled)
        x = hook.add(f"h.{i}.attn.resid", x, branch, config.resid_dropout, pooled)
        hidden = hook.activated(layer.fc, self._normed(x, layer.norm_2), self._activation, pooled)
        branch = hook.linear(layer.fc_out, hidden, pooled)  # (rows, d_model)
        return hook.add(f"h.{i}.mlp.resid", x, branch, config.resid_dropout, pooled)

    def normed(self, x: Tensor) -> Tensor:
        """The final norm of x (texts, d_model) float32."""
        return F.layer_norm(x, (self.d_model,), *self.norm, self.config.norm_eps)

    def linears(self) -> Iterator[Linear]:
        """Every linear layer, in the order of the forward pass."""
        for layer in self.layers:
            yield from (layer.attn, layer.attn_out, layer.fc, layer.fc_out)

    def _normed(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (self.d_model,), *norm, self.config.norm_eps).to(self.dtype)

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._weights.take(name, shape).to(self.device, torch.float32)

    def _norm(self, name: str) -> tuple[Tensor, Tensor]:
        return self._take(f"{name}.weight", self.d_model), self._take(f"{name}.bias", self.d_model)

    def _linear(self, name: str, n_in: int, n_out: int) -> Linear:
        weight = self._take(f"{name}.weight", n_in, n_out).T.to(self.dtype).contiguous()
        bias = self._take(f"{name}.bias", n_out).to(self.dtype)
        return Linear(weight, bias, {name: slice(0, n_out)})

    def _layer(self, i: int) -> _Layer:
        shapes = self.config.module_shapes()
        attn, attn_out, fc, fc_out = (
            self._linear(f"h.{i}.{module}", *shapes[f"h.{i}.{module}"]) for module in MODULES
        )
        return _Layer(self._norm(f"h.{i}.ln_1"), attn, attn_out, self._norm(f"h.{i}.ln_2"), fc, fc_out)
