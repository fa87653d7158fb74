"""The ONNX graph of a classifier: a decoder, and the score head on each text's last token.

The graph is written from the description that each family gives of its decoder, operator by operator, and
not traced from a model. It therefore has neither the fixed shapes nor the version-dependent operators of
a trace, and the same code serves every family. Shapes are in comments: b texts of l tokens, padded on the
right.

Attention is only causal: padding on the right comes after all real tokens, so the causal mask hides it. The
last layer computes its projection and MLP for the last real token of each text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rankwise.exporting.graph import FLOAT, INT64, Graph
from rankwise.exporting.int8 import product
from rankwise.exporting.source import SCORE
from rankwise.models.decoder import Decoder, Layer
from rankwise.nn.rotary import frequencies

IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
HIDDEN = float(np.finfo(np.float32).min)
"""Added to the scores of tokens that attention must not see. Infinity could become NaN."""


def classifier(
    decoder: Decoder, tensors: dict[str, Tensor], *, transposed: bool, pad_id: int | None, int8: bool = False
) -> Graph:
    """The graph of a classifier. `tensors` is emptied, so that its memory is free while the graph is written.

    Inputs are `input_ids` and `attention_mask` (b, l) int64; the output is `logits` (b, classes) float32.

    Args:
        decoder: the decoder.
        tensors: name -> float32 tensor, with the score head.
        transposed: whether linear weights are stored as (in, out).
        pad_id: a token that never counts as the last one of a text, even if the mask is 1 there; or None.
        int8: whether linear layers run in int8; the score head does not.
    """
    return _Writer(decoder, tensors, transposed, int8).write(pad_id)


class _Writer:
    def __init__(self, decoder: Decoder, tensors: dict[str, Tensor], transposed: bool, int8: bool) -> None:
        self.decoder, self.tensors, self.transposed, self.int8 = decoder, tensors, transposed, int8
        self.graph = Graph()

    def write(self, pad_id: int | None) -> Graph:
        node, decoder = self.graph.node, self.decoder
        positions = self._positions()  # (l,)
        last = self._last(positions, pad_id)  # (b, 1)
        x = node("Gather", self._constant(decoder.tokens), IDS)  # (b, l, d_model)
        if decoder.positions:
            table = self.tensors.pop(decoder.positions)[decoder.first_position :]
            learned = self.graph.constant(table.numpy(), decoder.positions)
            x = node("Add", x, node("Gather", learned, positions))
        visible, turns = self._visible(positions), self._turns(positions)
        for layer in decoder.layers:
            rows = last if layer == decoder.layers[-1] else None
            x = self._layer(layer, x, visible, turns, rows)  # the last one: (b, d_model)
        score = self.graph.constant(self.tensors.pop(SCORE).T.numpy(), SCORE)
        node("MatMul", self._norm(x, decoder.norm), score, output=LOGITS)
        return self.graph

    def _positions(self) -> str:
        """(l,) int64: 0, 1, 2, ..."""
        node, graph = self.graph.node, self.graph
        length = node("Squeeze", node("Shape", IDS, start=1, end=2))
        return node("Range", graph.scalar(0), length, graph.scalar(1))

    def _last(self, positions: str, pad_id: int | None) -> str:
        """(b, 1) int64: position of each text's last token."""
        node, graph, real = self.graph.node, self.graph, MASK
        if pad_id is not None:
            is_token = node("Not", node("Equal", IDS, graph.scalar(pad_id)))
            real = node("Mul", real, node("Cast", is_token, to=INT64))
        return node("ReduceMax", node("Mul", real, positions), graph.whole(1), keepdims=1)

    def _visible(self, positions: str) -> str:
        """(l, l) float32: 0 where a token sees another, and a large negative number where it does not."""
        node, graph = self.graph.node, self.graph
        columns, rows = (node("Unsqueeze", positions, graph.whole(axis)) for axis in (0, 1))
        return node("Where", node("Greater", columns, rows), graph.scalar(HIDDEN), graph.scalar(0.0))

    def _turns(self, positions: str) -> tuple[str, str] | None:
        """Cosines and sines of rotary positions, each (l, rotated / 2); None without rotary positions."""
        if self.decoder.rotary is None:
            return None
        node, graph = self.graph.node, self.graph
        found = frequencies(self.decoder.rotary, self.decoder.head_dim)
        column = node("Cast", node("Unsqueeze", positions, graph.whole(1)), to=FLOAT)
        angles = node("Mul", column, graph.constant(found.numpy(), "rotary_frequencies"))
        return node("Cos", angles), node("Sin", angles)

    def _layer(
        self, layer: Layer, x: str, visible: str, turns: tuple[str, str] | None, rows: str | None
    ) -> str:
        """A layer on x (b, l, d_model). If `rows` is given, the result is for these tokens, (b, d_model)."""
        node = self.graph.node
        qkv = self._linear(self._norm(x, layer.norm_1), layer.qkv, by_head=self.decoder.by_head)
        attended = self._attention(qkv, visible, turns)  # (b, l, heads * head_dim)
        if rows is not None:
            x, attended = (node("GatherND", each, rows, batch_dims=1) for each in (x, attended))
        branch = self._linear(attended, (layer.out,))
        if self.decoder.parallel:  # the MLP reads x as it is before attention is added
            return node("Add", node("Add", x, branch), self._mlp(x, layer))
        x = node("Add", x, branch)
        return node("Add", x, self._mlp(x, layer))

    def _mlp(self, x: str, layer: Layer) -> str:
        node, hidden = self.graph.node, self._linear(self._norm(x, layer.norm_2), layer.up)
        if self.decoder.gated:
            gate, up = self.graph.nodes("Split", 2, hidden, axis=-1, num_outputs=2)
            return self._linear(node("Mul", self._activated(gate), up), (layer.down,))
        return self._linear(self._activated(hidden), (layer.down,))

    def _attention(self, qkv: str, visible: str, turns: tuple[str, str] | None) -> str:
        """Causal attention of (b, l, (heads + 2 * kv_heads) * head_dim) -> (b, l, heads * head_dim)."""
        node, graph, decoder = self.graph.node, self.graph, self.decoder
        heads, shared, size = decoder.heads, decoder.kv_heads, decoder.head_dim
        parts = graph.whole(heads * size, shared * size, shared * size)
        q, k, v = graph.nodes("Split", 3, qkv, parts, axis=-1)
        q, k, v = self._by_head(q, heads), self._by_head(k, shared), self._by_head(v, shared)
        if turns is not None:
            q, k = self._rotated(q, *turns), self._rotated(k, *turns)
        q = node("Mul", q, graph.scalar(size**-0.5))
        if heads != shared:  # queries that share keys are rows of one product
            q = node("Reshape", q, graph.whole(0, shared, -1, size))  # (b, kv_heads, group * l, head_dim)
        scores = node("MatMul", q, node("Transpose", k, perm=(0, 1, 3, 2)))
        if heads != shared:
            scores = node("Reshape", scores, graph.whole(0, heads, -1, 0))
        weights = node("Softmax", node("Add", scores, visible), axis=-1)  # (b, heads, l, l)
        if heads != shared:
            weights = node("Reshape", weights, graph.whole(0, shared, -1, 0))
        mixed = node("MatMul", weights, v)
        if heads != shared:
            mixed = node("Reshape", mixed, graph.whole(0, heads, -1, size))
        by_token = node("Transpose", mixed, perm=(0, 2, 1, 3))  # (b, l, heads, head_dim)
        return node("Reshape", by_token, graph.whole(0, 0, heads * size))

    def _by_head(self, x: str, heads: int) -> str:
        """(b, l, heads * head_dim) -> (b, heads, l, head_dim)."""
        shape = self.graph.whole(0, 0, heads, self.decoder.head_dim)
        return self.graph.node("Transpose", self.graph.node("Reshape", x, shape), perm=(0, 2, 1, 3))

    def _rotated(self, x: str, cos: str, sin: str) -> str:
        """Rotary positions on x (b, heads, l, head_dim), as in `nn.rotary`."""
        node, graph, decoder = self.graph.node, self.graph, self.decoder
        assert decoder.rotary is not None
        half = int(decoder.head_dim * decoder.rotary.share) // 2
        rest = decoder.head_dim - 2 * half
        sizes = (half, half, rest) if rest else (half, half)
        a, b, *same = graph.nodes("Split", len(sizes), x, graph.whole(*sizes), axis=-1)
        first = node("Sub", node("Mul", a, cos), node("Mul", b, sin))
        second = node("Add", node("Mul", b, cos), node("Mul", a, sin))
        return node("Concat", first, second, *same, axis=-1)

    def _norm(self, x: str, name: str) -> str:
        node, eps = self.graph.node, self.decoder.norm_eps
        weight = self._constant(f"{name}.weight")
        if not self.decoder.rms:
            bias = self._constant(f"{name}.bias")
            return node("LayerNormalization", x, weight, bias, axis=-1, epsilon=eps)
        square = node("ReduceMean", node("Mul", x, x), self.graph.whole(-1), keepdims=1)
        scale = node("Sqrt", node("Add", square, self.graph.scalar(eps)))
        return node("Mul", node("Div", x, scale), weight)

    def _activated(self, x: str) -> str:
        return _ACTIVATIONS[self.decoder.activation](self.graph, x)

    def _linear(self, x: str, modules: Sequence[str], *, by_head: bool = False) -> str:
        """Linear layers with the same input, as one product; their outputs are side by side."""
        node, name = self.graph.node, " ".join(modules)
        weights = [self.tensors.pop(f"{module}.weight") for module in modules]
        weight = torch.cat([each if self.transposed else each.T for each in weights], 1)  # (in, out)
        y = self._product(x, self._columns(weight, by_head), f"{name}.weight")
        biases = [self.tensors.pop(f"{module}.bias", None) for module in modules]
        given = [bias for bias in biases if bias is not None]
        if not given:
            return y
        bias = self._columns(torch.cat(given), by_head).numpy()
        return node("Add", y, self.graph.constant(bias, f"{name}.bias"))

    def _product(self, x: str, weight: Tensor, name: str) -> str:
        if self.int8:
            return product(self.graph, x, weight, name)
        return self.graph.node("MatMul", x, self.graph.constant(weight.numpy(), name))

    def _columns(self, x: Tensor, by_head: bool) -> Tensor:
        """The columns of a weight or bias. Those that are ordered by head become queries, keys, values."""
        if by_head:
            x = x.view(*x.shape[:-1], self.decoder.heads, 3, -1).transpose(-3, -2).flatten(-3)
        return x

    def _constant(self, name: str) -> str:
        return self.graph.constant(self.tensors.pop(name).contiguous().numpy(), name)


def _gelu(approximate: str) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.node("Gelu", x, approximate=approximate)


_ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "gelu_new": _gelu("tanh"),
    "gelu_pytorch_tanh": _gelu("tanh"),
    "gelu": _gelu("none"),
    "relu": lambda graph, x: graph.node("Relu", x),
    "silu": lambda graph, x: graph.node("Mul", x, graph.node("Sigmoid", x)),
}
"""Name in `nn.activation.ACTIVATIONS` -> its nodes."""
