"""The Llama family as a frozen backbone (Touvron et al. 2023, arXiv 2302.13971), Qwen2 included.

RMS norm, rotary positions (Su et al. 2021, arXiv 2104.09864), grouped-query attention, SwiGLU.
Query, key and value read the same input and are held as one matrix, as are gate and up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.models.config import choice, count, flag, positive
from rankwise.nn.attention import attend
from rankwise.nn.backbone import Backbone, Hook, Source
from rankwise.nn.batch import PackedBatch
from rankwise.nn.linear import Linear

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
MODULES = (*ATTENTION, "self_attn.o_proj", *MLP, "mlp.down_proj")


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's stretching of rotary wavelengths."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of a Llama or Qwen2 model; the fields of transformers' config that matter here."""

    vocab_size: int
    max_positions: int
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    norm_eps: float
    rope_theta: float
    rope: Llama3Rope | None
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    head_std: float

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Self:
        """The config from a model folder's config.json.

        Raises:
            ModelError: a value is missing, out of range, or asks for what this backbone does not do.
        """
        choice(json, "hidden_act", "silu", ("silu",))
        qwen2 = json.get("model_type") == "qwen2"
        if qwen2 and json.get("use_sliding_window"):
            raise ModelError("config.json: use_sliding_window is not supported")
        d_model, heads = count(json, "hidden_size"), count(json, "num_attention_heads")
        kv_heads = count(json, "num_key_value_heads", heads)
        head_dim = count(json, "head_dim", max(1, d_model // heads))
        if heads % kv_heads or head_dim % 2:
            raise ModelError(
                f"config.json: {heads} heads, {kv_heads} key-value heads of size {head_dim} do not fit"
            )
        # transformers 5 keeps the rotary settings in one table, older ones in two fields.
        rope = json.get("rope_parameters") or json.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ModelError("config.json: the rotary settings must be an object")
        return cls(
            vocab_size=count(json, "vocab_size"),
            max_positions=count(json, "max_position_embeddings", 2048),
            d_model=d_model,
            layers=count(json, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            d_ff=count(json, "intermediate_size"),
            norm_eps=positive(json, "rms_norm_eps", 1e-6),
            rope_theta=positive(rope if "rope_theta" in rope else json, "rope_theta", 10000.0),
            rope=_llama3_rope(rope),
            qkv_bias=qwen2 or flag(json, "attention_bias", False),
            out_bias=not qwen2 and flag(json, "attention_bias", False),
            mlp_bias=not qwen2 and flag(json, "mlp_bias", False),
            head_std=positive(json, "initializer_range", 0.02),
        )

    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """Site name -> (in, out), in the order of the forward pass."""
        d, q, kv = self.d_model, self.heads * self.head_dim, self.kv_heads * self.head_dim
        outs = dict.fromkeys(MLP, self.d_ff) | dict(zip(ATTENTION, (q, kv, kv), strict=True))
        shapes = {module: (d, out) for module, out in outs.items()}
        shapes |= {"self_attn.o_proj": (q, d), "mlp.down_proj": (self.d_ff, d)}
        return {f"layers.{i}.{module}": shapes[module] for i in range(self.layers) for module in MODULES}

    def parameters(self) -> int:
        """Parameters of the backbone, embeddings included and without any head."""
        linears = self.module_shapes().items()
        biases = sum(n_out for module, (_, n_out) in linears if self.has_bias(module))
        norms = (2 * self.layers + 1) * self.d_model
        return (
            self.vocab_size * self.d_model
            + sum(n_in * n_out for _, (n_in, n_out) in linears)
            + biases
            + norms
        )

    def has_bias(self, module: str) -> bool:
        """Whether the target module's linear layer has a bias."""
        if module.endswith(ATTENTION):
            return self.qkv_bias
        return self.out_bias if module.endswith("o_proj") else self.mlp_bias


def _llama3_rope(rope: Mapping[str, Any]) -> Llama3Rope | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(f"config.json: rotary type {kind!r} is not supported")
    return Llama3Rope(
        factor=positive(rope, "factor", 8.0),
        low_freq_factor=positive(rope, "low_freq_factor", 1.0),
        high_freq_factor=positive(rope, "high_freq_factor", 4.0),
        original_positions=count(rope, "original_max_position_embeddings", 8192),
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
    """A frozen Llama or Qwen2.

    Args:
        config: its shape.
        weights: where its tensors come from, under transformers' names without `model.`.
        dtype: of the linear weights and of matrix products.
        device: where it shall live.
    """

    default_targets = ("q_proj", "v_proj")
    head_prefix = "model"

    def __init__(
        self, config: LlamaConfig, weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.d_model, self.max_positions, self.head_std = (
            config.d_model,
            config.max_positions,
            config.head_std,
        )
        self._weights = weights
        self.tokens = self._take("embed_tokens.weight", config.vocab_size, config.d_model)
        self.frequencies = _frequencies(config).to(self.device)
        self.layers = [self._layer(f"layers.{i}") for i in range(config.layers)]
        self.depth = len(self.layers)
        self.norm = self._take("norm.weight", config.d_model)
        del self._weights

    def embed(self, packed: PackedBatch, hook: Hook) -> Tensor:
        """(tokens, d_model) float32: what goes into the first layer."""
        return self.tokens[packed.ids]

    def layer(self, i: int, x: Tensor, packed: PackedBatch, hook: Hook) -> Tensor:
        """Layer i on x (tokens, d_model) float32; the last layer gives (texts, d_model)."""
        config, layer, pooled = self.config, self.layers[i], i == self.depth - 1
        qkv = hook.linear(layer.qkv, _rms_norm(x, layer.norm_1, config.norm_eps, self.dtype))
        qkv = qkv.view(len(qkv), -1, config.head_dim)  # (tokens, heads + 2 * kv_heads, head_dim)
        qkv = _rotate(qkv, config.heads + config.kv_heads, *self._rotation(packed.positions))
        attended = attend(packed, qkv, config.heads, None, 0.0, pooled)  # (rows, heads * head_dim)
        x = x.index_select(0, packed.last) if pooled else x
        x = x + hook.linear(layer.out, attended, pooled)
        hidden = _rms_norm(x, layer.norm_2, config.norm_eps, self.dtype)
        return x + hook.linear(layer.down, _swiglu(hook.linear(layer.gate_up, hidden, pooled)), pooled)

    def normed(self, x: Tensor) -> Tensor:
        """The final norm of x (texts, d_model) float32."""
        return _rms_norm(x, self.norm, self.config.norm_eps, torch.float32)

    def linears(self) -> Iterator[Linear]:
        """Every linear layer, in the order of the forward pass."""
        for layer in self.layers:
            yield from (layer.qkv, layer.out, layer.gate_up, layer.down)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * self.frequencies  # (tokens, head_dim / 2)
        return angles.cos()[:, None].to(self.dtype), angles.sin()[:, None].to(self.dtype)

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._weights.take(name, shape).to(self.device, torch.float32)

    def _linear(self, *modules: str) -> Linear:
        """One linear layer of several target modules that read the same input."""
        shapes = self.config.module_shapes()
        columns, weights, biases, start = {}, [], [], 0
        for module in modules:
            n_in, n_out = shapes[module]
            columns[module] = slice(start, start + n_out)
            weights.append(self._take(f"{module}.weight", n_out, n_in).to(self.dtype))
            if self.config.has_bias(module):
                biases.append(self._take(f"{module}.bias", n_out).to(self.dtype))
            start += n_out
        return Linear(torch.cat(weights), torch.cat(biases) if biases else None, columns)

    def _layer(self, name: str) -> _Layer:
        return _Layer(
            norm_1=self._take(f"{name}.input_layernorm.weight", self.d_model),
            qkv=self._linear(*(f"{name}.{module}" for module in ATTENTION)),
            out=self._linear(f"{name}.self_attn.o_proj"),
            norm_2=self._take(f"{name}.post_attention_layernorm.weight", self.d_model),
            gate_up=self._linear(*(f"{name}.{module}" for module in MLP)),
            down=self._linear(f"{name}.mlp.down_proj"),
        )


def _frequencies(config: LlamaConfig) -> Tensor:
    """(head_dim / 2,) float32, radians a position."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    if config.rope is None:
        return frequencies
    rope, wavelengths = config.rope, 2 * math.pi / frequencies
    turns = rope.original_positions / wavelengths  # over the length the model was first trained on
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0, 1)  # 0: stretched by the factor, 1: left alone
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def _rotate(x: Tensor, turned: int, cos: Tensor, sin: Tensor) -> Tensor:
    out: Tensor = _Rotate.apply(x, turned, cos, sin)  # type: ignore[no-untyped-call]
    return out


def _rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    out: Tensor = _RMSNorm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]
    return out


def _swiglu(gate_up: Tensor) -> Tensor:
    out: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


def _turn(x: Tensor, turned: int, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[:, turned:] = x[:, turned:]
    a, b = x[:, :turned].chunk(2, -1)
    left, right = out[:, :turned].chunk(2, -1)
    torch.mul(a, cos, out=left).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=right).addcmul_(a, sin)
    return out


class _Rotate(torch.autograd.Function):
    """Rotary positions on the first `turned` heads of x (tokens, heads, head_dim).

    cos and sin are (tokens, 1, head_dim / 2). The other heads, the values, are copied.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, turned: int, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.turned = turned
        return _turn(x, turned, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], ctx.turned, cos, -sin), None, None, None


class _RMSNorm(torch.autograd.Function):
    """RMS norm of float32 rows with a frozen weight, into `dtype`; keeps its input and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (x * scale).mul_(weight).to(dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight, scale = ctx.saved_tensors
        weighted = grads[0] * weight  # (rows, d_model) float32
        dot = torch.linalg.vecdot(weighted, x)[:, None]
        return (weighted * scale).addcmul_(x, dot * scale**3, value=-1 / x.shape[-1]), None, None, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up of (rows, 2 * d_ff) -> (rows, d_ff)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, -1)
        torch.mul(grads[0], F.silu(gate), out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return (d_gate_up,)
