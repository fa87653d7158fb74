"""What a family's decoder consists of, as data, from which an exporter writes a graph.

Every family is a stack of layers with a norm before attention and one before the MLP::

    x = tokens[ids] + positions[0, 1, ...]
    x = x + out(attention(qkv(norm_1(x))))
    x = x + down(activation(up(norm_2(x))))          gated: activation(gate) * up
    norm(x)

A `Decoder` says which tensors these are, and which variant of each step the family uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.nn.rotary import Rotary


@dataclass(frozen=True)
class Layer:
    """Names of a layer's modules. Linear layers with the same input are listed together."""

    norm_1: str
    qkv: tuple[str, ...]  # query, key and value, or one module with all three
    out: str
    norm_2: str
    up: tuple[str, ...]  # if gated: gate, then up
    down: str


@dataclass(frozen=True)
class Decoder:
    """A decoder. All names are transformers', without the family's prefix."""

    tokens: str  # tensor (vocabulary, d_model)
    layers: tuple[Layer, ...]
    norm: str  # the final norm
    norm_eps: float
    heads: int
    kv_heads: int
    head_dim: int
    activation: str  # a key of `nn.activation.ACTIVATIONS`
    positions: str = ""  # tensor (positions, d_model) of learned positions; empty if there are none
    first_position: int = 0  # row of a text's first token in that tensor
    rotary: Rotary | None = None
    rms: bool = False  # RMS norms instead of layer norms
    gated: bool = False  # the MLP has a gate
    by_head: bool = False  # the outputs of `qkv` are those of the first head, then those of the next
    parallel: bool = False  # attention and MLP read the same x
