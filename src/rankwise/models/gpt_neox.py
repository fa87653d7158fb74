"""The GPT-NeoX family (Black et al. 2022, arXiv 2204.06745), including Pythia (arXiv 2304.01373).

Layer norm, rotary positions on the first part of each head, biases. Attention and MLP run in parallel on the
same input (`use_parallel_residual`) or sequentially::

    x = embed_in[ids]
    a = dense(attention(rotate(query_key_value(input_layernorm(x)))))
    x = x + a + dense_4h_to_h(gelu(dense_h_to_4h(post_attention_layernorm(x))))        parallel
    x = x + a;  x = x + dense_4h_to_h(gelu(dense_h_to_4h(post_attention_layernorm(x))))   not parallel
    final_layer_norm(x)

query_key_value interleaves heads: query, key and value of the first head, then those of the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
    Positive,
    Rate,
    Share,
    Size,
    Table,
    Width,
    one_of,
    scaling_of,
    table_of,
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
from rankwise.nn.rotary import Rotary, frequencies, rotate, rotation

TARGETS = ("query_key_value",)
ROTARY_KEYS = (
    *("rope_parameters", "rope_scaling", "rotary_emb_base", "rotary_pct"),
    "original_max_position_embeddings",
)
"""Settings that `rotary` combines."""


class GPTNeoXConfig(ModelConfig):
    """Shape of a GPT-NeoX model."""

    layer_name: ClassVar[str] = "layers.{}"
    passed_on: ClassVar[frozenset[str]] = frozenset(
        {"attn_dropout", "hidden_dropout", "classifier_dropout", "head_size", *ROTARY_KEYS}
    )

    vocab_size: Size
    max_positions: Size = Field(2048, alias="max_position_embeddings")
    d_model: Width = Field(alias="hidden_size")
    layers: Layers = Field(alias="num_hidden_layers")
    heads: Heads = Field(alias="num_attention_heads")
    head_size: Width | None = Field(None, alias="head_dim")
    d_ff: Inner = Field(alias="intermediate_size")
    activation: ActivationName = Field("gelu", alias="hidden_act")
    norm_eps: Positive = Field(1e-5, alias="layer_norm_eps")
    attn_dropout: Rate = Field(0.0, alias="attention_dropout")
    hidden_dropout: Rate = 0.0
    head_std: Positive = Field(0.02, alias="initializer_range")
    attention_bias: Flag = True
    parallel: Flag = Field(True, alias="use_parallel_residual")
    # transformers 5 has one table of rotary settings; older versions use these keys.
    rope_parameters: Table | None = None
    rope_scaling: Table | None = None
    rotary_emb_base: Positive | None = None
    rotary_pct: Share | None = None
    original_max_position_embeddings: Size | None = None
    # Not used, only passed on.
    classifier_dropout: Rate | None = None

    @property
    def head_dim(self) -> int:
        """Head dimension."""
        return self.d_model // self.heads

    @property
    def rotary(self) -> Rotary:
        """The rotary settings."""
        table = table_of(self.rope_parameters, self.rope_scaling)
        theta = {"rotary_emb_base": self.rotary_emb_base, "rope_parameters.rope_theta": table.rope_theta}
        share = {
            "rotary_pct": self.rotary_pct,
            "rope_parameters.partial_rotary_factor": table.partial_rotary_factor,
        }
        scaling = scaling_of(table, self.max_positions, self.original_max_position_embeddings)
        return Rotary(one_of(theta, 10000.0), one_of(share, 0.25), scaling)

    def decisive(self) -> dict[str, Any]:
        """See `ModelConfig.decisive`."""
        return super().decisive() | {"rotary": asdict(self.rotary)}

    def check(self) -> None:
        """See `ModelConfig.check`."""
        self._check_heads("hidden_size", "num_attention_heads")
        if self.head_size not in (None, self.head_dim):  # transformers uses it for the rotary embedding only
            what = f"head_dim must be {self.head_dim}, hidden_size / num_attention_heads"
            raise ModelError(f"config.json: {what} (nothing else is supported), not {self.head_size}")
        turned = int(self.head_dim * self.rotary.share)
        if turned < 2 or turned % 2:
            what = (
                f"rotary_pct {self.rotary.share:g} of head size {self.head_dim} rotates {turned} dimensions"
            )
            raise ModelError(f"config.json: {what}, which must be an even number")

    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Target module within a layer -> (in, out), in the order of the forward pass."""
        d, ff = self.d_model, self.d_ff
        return {
            "attention.query_key_value": (d, 3 * d),
            "attention.dense": (d, d),
            "mlp.dense_h_to_4h": (d, ff),
            "mlp.dense_4h_to_h": (ff, d),
        }

    def parameters(self) -> int:
        """Parameters of the backbone, including embeddings and without any head."""
        linears = self.module_shapes().items()
        biases = sum(n_out for module, (_, n_out) in linears if self.has_bias(module))
        matrices = sum(n_in * n_out for _, (n_in, n_out) in linears)
        return self.vocab_size * self.d_model + matrices + biases + (2 * self.layers + 1) * 2 * self.d_model

    def has_bias(self, module: str) -> bool:
        """Whether the target module's linear layer has a bias."""
        return self.attention_bias or ".mlp." in f".{module}"

    def layer_memory(self) -> LayerMemory:
        """What a layer keeps per token; parallel branches share one norm input."""
        return LayerMemory(
            heads=3 * self.d_model,
            activation=self.d_ff,
            widest=self.d_ff,
            residuals=1 if self.parallel else 2,
            masks=2 * self.d_model if self.hidden_dropout else 0,
            attention_masks=1 if self.attn_dropout else 0,
        )


@dataclass(slots=True)
class _Layer:
    norm_1: NormWeights
    qkv: Linear  # (3 * d_model, d_model)
    out: Linear  # (d_model, d_model)
    norm_2: NormWeights
    up: Linear  # (d_ff, d_model)
    down: Linear  # (d_model, d_ff)


class GPTNeoX(Backbone):
    """A frozen GPT-NeoX.

    Args:
        config: shape of the model.
        weights: source of the tensors, under transformers' names without `gpt_neox.`.
        dtype: dtype of linear weights and matrix products.
        device: device for the model.
    """

    default_targets = TARGETS

    def __init__(
        self, config: GPTNeoXConfig, weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.d_model, self.max_positions = config.d_model, config.max_positions
        self.depth, self.head_std = config.layers, config.head_std
        self.has_dropout = max(config.attn_dropout, config.hidden_dropout) > 0
        self._activation = ACTIVATIONS[config.activation]
        loader = Loader(weights, dtype, self.device)
        self.tokens = loader.tensor("embed_in.weight", config.vocab_size, config.d_model)
        self.frequencies = frequencies(config.rotary, config.head_dim).to(self.device)
        self.layers = [_layer(loader, config, f"layers.{i}") for i in range(config.layers)]
        self.norm = loader.norm("final_layer_norm", config.d_model)

    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: the input of the first layer."""
        return hook.drop("embd", self.tokens[packed.ids], self.config.hidden_dropout)

    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Apply layer i to x (tokens, d_model) float32. The last layer returns (texts, d_model)."""
        pooled, name, rate = i == self.depth - 1, f"layers.{i}", self.config.hidden_dropout
        branch = self._attention(i, x, packed, hook)  # (rows, d_model)
        x = x.index_select(0, packed.last) if pooled else x  # (rows, d_model)
        if self.config.parallel:  # the MLP must read x before x is modified
            mlp = self._mlp(i, x, hook)
            x = hook.add(f"{name}.attention.resid", x, branch, rate, pooled)
        else:
            x = hook.add(f"{name}.attention.resid", x, branch, rate, pooled)
            mlp = self._mlp(i, x, hook)
        return hook.add(f"{name}.mlp.resid", x, mlp, rate, pooled)

    def normed(self, x: Tensor) -> Tensor:
        """Apply the final norm to x (texts, d_model) float32."""
        return layer_norm(x, self.norm, self.config.norm_eps, torch.float32)

    def linears(self) -> Iterator[Linear]:
        """All linear layers, in the order of the forward pass."""
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.up, layer.down)

    def _attention(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """(rows, d_model): the attention branch. Rows are tokens, or texts in the last layer."""
        config, layer, pooled, rate = (
            self.config,
            self.layers[i],
            i == self.depth - 1,
            self.config.attn_dropout,
        )
        qkv = hook.linear(layer.qkv, self._normed(x, layer.norm_1))  # (tokens, 3 * d_model)
        by_head = qkv.view(len(qkv), config.heads, 3, config.head_dim)
        qkv = by_head.transpose(1, 2).reshape(len(qkv), 3 * config.heads, config.head_dim)
        turning = rotation(packed, self.frequencies, self.dtype)
        qkv = rotate(qkv, 2 * config.heads, *turning)  # queries and keys
        mask = hook.mask(f"layers.{i}.attention", config.heads, rate, pooled)
        return hook.linear(layer.out, attend(packed, qkv, config.heads, mask, rate, pooled), pooled)

    def _mlp(self, i: int, x: Tensor, hook: Hook) -> Tensor:
        """(rows, d_model): the MLP branch."""
        layer, pooled = self.layers[i], i == self.depth - 1
        hidden = hook.activated(
            layer.up, self._normed(x, layer.norm_2), self._activation, pooled
        )  # (rows, d_ff)
        return hook.linear(layer.down, hidden, pooled)

    def _normed(self, x: Tensor, norm: NormWeights) -> Tensor:
        return layer_norm(x, norm, self.config.norm_eps, self.dtype)


def _layer(loader: Loader, config: GPTNeoXConfig, name: str) -> _Layer:
    shapes = {f"{name}.{module}": shape for module, shape in config.layer_shapes().items()}
    qkv, out, up, down = (loader.linear({key: shapes[key]}, bias=config.has_bias(key)) for key in shapes)
    norms = ("input_layernorm", "post_attention_layernorm")
    norm_1, norm_2 = (loader.norm(f"{name}.{norm}", config.d_model) for norm in norms)
    return _Layer(norm_1, qkv, out, norm_2, up, down)


def _decoder(config: GPTNeoXConfig) -> Decoder:
    return Decoder(
        tokens="embed_in.weight",
        layers=tuple(
            LayerNames(
                norm_1=f"layers.{i}.input_layernorm",
                qkv=(f"layers.{i}.attention.query_key_value",),
                out=f"layers.{i}.attention.dense",
                norm_2=f"layers.{i}.post_attention_layernorm",
                up=(f"layers.{i}.mlp.dense_h_to_4h",),
                down=f"layers.{i}.mlp.dense_4h_to_h",
            )
            for i in range(config.layers)
        ),
        norm="final_layer_norm",
        norm_eps=config.norm_eps,
        heads=config.heads,
        kv_heads=config.heads,
        head_dim=config.head_dim,
        activation=config.activation,
        rotary=config.rotary,
        by_head=True,
        parallel=config.parallel,
    )


def _pythia(d_model: int, layers: int, heads: int) -> dict[str, Any]:
    """config.json of a Pythia."""
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
        "hidden_size": d_model,
        "intermediate_size": 4 * d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


FAMILY = Family(
    title="GPT-NeoX",
    model_type="gpt_neox",
    config=GPTNeoXConfig,
    backbone=GPTNeoX,
    decoder=_decoder,
    prefix="gpt_neox",
    architecture="GPTNeoXForSequenceClassification",
    embedding="embed_in",
    default_targets=TARGETS,
    known={
        "EleutherAI/pythia-70m": _pythia(512, 6, 8),
        "EleutherAI/pythia-160m": _pythia(768, 12, 12),
        "EleutherAI/pythia-410m": _pythia(1024, 24, 16),
        "EleutherAI/pythia-1b": _pythia(2048, 16, 8),
    },
    peer=Peer(
        "GPTNeoXConfig",
        {
            "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 4,
            "max_position_embeddings": 64, "rotary_pct": 0.5,
        },
    ),
)  # fmt: skip
