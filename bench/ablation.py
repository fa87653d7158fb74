"""Ablation of the training step's optimizations, reverting one at a time.

GPT-2's 124M shape with random weights, LoRA rank 4 on c_attn, dropout on, the published recipe. A variant
is a process in which one optimization is replaced by the previous code, which is kept in this file. The
variants are run alternately, in several rounds.

    taskset -c 1 env OMP_NUM_THREADS=1 python -m bench.ablation [--steps N] [--rounds N] [--dtype NAME]
        [--only WORD] [--record FILE]
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import common
from bench.train_step import GPT2, RANK, Way, Work, ours
from rankwise.models import gpt2
from rankwise.models.registry import KNOWN
from rankwise.nn import activation, attention, dropout, linear
from rankwise.nn.batch import LengthBucket, PackedBatch
from rankwise.nn.ragged import lora, masks

BATCH = 32
AS_IT_IS = "as it is"
WEIGHTS = "weights as torch has them"
GELU = "torch's GELU"
HEADS = "whole rows gathered, then copied by head"
MASKS = "masks compared by torch, bools or the products' dtype"
SUM = "mask, scale and sum one after another"
VARIANTS: dict[str, Sequence[str]] = {AS_IT_IS: ()}
VARIANTS |= {name: (name,) for name in (WEIGHTS, GELU, HEADS, MASKS, SUM)}
VARIANTS |= {"all five undone": (WEIGHTS, GELU, HEADS, MASKS, SUM)}


def main() -> None:
    """Run the variants alternately and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each variant")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument(
        "--only", default="", help="only variants whose name has this word, and the present code"
    )
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--variant", help="for the benchmark itself: run as this one")
    options = parser.parse_args()
    if options.variant:
        return contend(options.variant, options.dtype, options.steps)
    settings = ["-m", "bench.ablation", "--steps", str(options.steps), "--dtype", options.dtype]
    names = [name for name in VARIANTS if name == AS_IT_IS or options.only in name]
    done = common.take_turns({name: [*settings, "--variant", name] for name in names}, options.rounds)
    report(done, options)


def contend(name: str, dtype: str, steps: int) -> None:
    """Run one variant."""
    texts, labels = common.draw((steps + 1) * BATCH)
    with ExitStack() as stack:
        for change in VARIANTS[name]:
            for home, attribute, older in undo(change, getattr(torch, dtype)):
                stack.enter_context(mock.patch.object(home, attribute, older))
        ours(Way(dtype), Work(KNOWN[GPT2], batch=BATCH), texts, labels)


def undo(change: str, dtype: torch.dtype) -> Iterator[tuple[Any, str, Any]]:
    """An optimization and the code it replaced: object, attribute, previous value."""
    if change == WEIGHTS:
        yield linear, "can_pack", lambda x, weight: False
    elif change == GELU:
        plain = partial(F.gelu, approximate="tanh")
        yield gpt2, "ACTIVATIONS", {**activation.ACTIVATIONS, "gelu_new": plain}
    elif change == HEADS:
        yield gpt2, "attend", attend
    elif change == MASKS:
        bools = masks.StepMasks.rows
        yield masks, "draw", draw
        yield masks.StepMasks, "rows", lambda *args: bools(*args).to(dtype)
        yield lora, "_dropped", lambda x, use: x[use.rows] * use.mask
        yield attention, "_dropped", lambda weights, mask, i: weights * mask[i].view_as(weights)
    else:
        yield dropout.DropoutHook, "add", add


def draw(step: int, name: str, device: torch.device, seed: int, count: int, rate: float) -> Tensor:
    """(count,) bool, equal to `masks.draw`, with the comparison in torch."""
    key = np.random.SeedSequence([seed, step, zlib.crc32(name.encode())])
    words = np.random.SFC64(key).random_raw(-(-count // 4))
    return torch.from_numpy(words.view(np.int16)[:count]) >= round(rate * (1 << 16)) - (1 << 15)


def add(
    hook: dropout.DropoutHook, name: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False
) -> Tensor:
    """x + dropout(branch) by three operators."""
    return x + hook.drop(name, branch, rate, pooled)


def attend(
    packed: PackedBatch, qkv: Tensor, heads: int, mask: list[Tensor], rate: float, pooled: bool
) -> Tensor:
    """`attention.attend` with one key head per query head, and with dropout."""
    q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # (tokens, heads, head_dim)
    q = q[packed.last] if pooled else q
    out: Tensor = _Attention.apply(q, k, v, packed, mask, rate, pooled)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    """Gathers rows into length buckets, then copies them by head; scaling is a separate product."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        packed: PackedBatch,
        mask: list[Tensor],
        rate: float,
        pooled: bool,
    ) -> Tensor:
        at = _places(packed, pooled)
        q_rows, k_rows, v_rows = (
            t.index_select(0, i) for t, i in ((q, at.queries), (k, at.keys), (v, at.keys))
        )
        out, saved = torch.empty_like(q_rows), []
        for i, bucket in enumerate(packed.buckets):
            texts, queries, keys = len(bucket.texts), at.query_rows[i], at.key_rows[i]
            qb, kb, vb = (_to_heads(t, texts) for t in (q_rows[queries], k_rows[keys], v_rows[keys]))
            scores = torch.bmm(qb, kb.transpose(1, 2)).float().mul_(1 / math.sqrt(q.shape[-1]))
            weights = _softmax(scores, bucket, pooled).to(q.dtype)
            _from_heads(torch.bmm(_drop(weights, mask, i, rate), vb), out[queries], texts)
            saved += [qb, kb, vb, weights]
        ctx.save_for_backward(*saved)
        ctx.at, ctx.packed, ctx.mask, ctx.rate = at, packed, mask, rate
        return out.index_select(0, at.answers).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        at, mask, rate = ctx.at, ctx.mask, ctx.rate
        heads, head_dim = (
            ctx.saved_tensors[0].shape[0] // len(ctx.packed.buckets[0].texts),
            ctx.saved_tensors[0].shape[2],
        )
        d_out = grads[0].new_zeros(len(at.queries), heads, head_dim)
        d_out[at.answers] = grads[0].view(-1, heads, head_dim)
        dq, dk, dv = (
            torch.empty_like(d_out),
            *(d_out.new_empty(len(at.keys), heads, head_dim) for _ in range(2)),
        )
        for i, bucket in enumerate(ctx.packed.buckets):
            texts, queries, keys = len(bucket.texts), at.query_rows[i], at.key_rows[i]
            qb, kb, vb, weights = ctx.saved_tensors[4 * i : 4 * i + 4]
            d_ob = _to_heads(d_out[queries], texts)
            d_weights = _drop(torch.bmm(d_ob, vb.transpose(1, 2)), mask, i, rate)
            d_scores = torch._softmax_backward_data(d_weights.float(), weights.float(), -1, torch.float32)
            d_scores = d_scores.mul_(1 / math.sqrt(head_dim)).to(qb.dtype)
            _from_heads(torch.bmm(_drop(weights, mask, i, rate).transpose(1, 2), d_ob), dv[keys], texts)
            _from_heads(torch.bmm(d_scores, kb), dq[queries], texts)
            _from_heads(torch.bmm(d_scores.transpose(1, 2), qb), dk[keys], texts)
        dq, dk, dv = (
            dq.index_select(0, at.answers),
            dk.index_select(0, at.key_answers),
            dv.index_select(0, at.key_answers),
        )
        return dq, dk, dv, None, None, None, None


class _Places(NamedTuple):
    """The gather indices of a packed batch, and their inverse."""

    keys: Tensor  # (gathered,) int64
    key_answers: Tensor  # (tokens,) int64, the inverse
    queries: Tensor  # like `keys`; one per text if pooled
    answers: Tensor
    key_rows: list[slice]  # of each length bucket
    query_rows: list[slice]


def _places(packed: PackedBatch, pooled: bool) -> _Places:
    """The indices of a packed batch, computed once."""
    if ("rows", pooled) not in packed.layouts:
        keys = torch.cat([bucket.rows.flatten() for bucket in packed.buckets])
        real = torch.cat([bucket.real.flatten() for bucket in packed.buckets])
        back = torch.empty_like(packed.ids)
        back[keys[real]] = real.nonzero().flatten()
        found = keys, back
        rows = _slices([bucket.rows.numel() for bucket in packed.buckets])
        if pooled:
            texts = torch.cat([bucket.texts for bucket in packed.buckets])
            answers = texts, texts.argsort()
            queries = _slices([len(bucket.texts) for bucket in packed.buckets])
        else:
            answers, queries = found, rows
        packed.layouts["rows", pooled] = _Places(*found, *answers, rows, queries)
    places: _Places = packed.layouts["rows", pooled]
    return places


def _slices(sizes: Sequence[int]) -> list[slice]:
    return [slice(a, b) for a, b in pairwise(np.cumsum([0, *sizes]).tolist())]


def _to_heads(rows: Tensor, texts: int) -> Tensor:
    """(texts * n, heads, head_dim) -> (texts * heads, n, head_dim), contiguous."""
    n, heads, head_dim = rows.shape[0] // texts, rows.shape[1], rows.shape[2]
    return rows.view(texts, n, heads, head_dim).transpose(1, 2).reshape(texts * heads, n, head_dim)


def _from_heads(dense: Tensor, rows: Tensor, texts: int) -> None:
    """The inverse of `_to_heads`, written into `rows`."""
    n, heads, head_dim = rows.shape[0] // texts, rows.shape[1], rows.shape[2]
    rows.view(texts, n, heads, head_dim).copy_(dense.view(texts, heads, n, head_dim).transpose(1, 2))


def _softmax(scores: Tensor, bucket: LengthBucket, pooled: bool) -> Tensor:
    """Attention weights from scores (texts * heads, queries, width), which are overwritten."""
    keys = torch.arange(bucket.width)
    shape, hidden = (
        ((len(bucket.texts), -1, bucket.width), keys >= bucket.lengths[:, None, None])
        if pooled
        else ((-1, bucket.width, bucket.width), keys > keys[:, None])
    )
    return scores.view(shape).masked_fill_(hidden, -math.inf).softmax(-1).view_as(scores)


def _drop(weights: Tensor, mask: list[Tensor], bucket: int, rate: float) -> Tensor:
    return attention._dropped(weights, mask, bucket).mul_(1 / (1 - rate))


def report(done: dict[str, common.Contender], options: argparse.Namespace) -> None:
    """Print the record and write it to a file."""
    least = {name: 1000 * common.least(run.cpu, options.steps) for name, run in done.items()}
    now = least[AS_IT_IS]
    rows = [
        [name, f"{ms:,.0f}", f"{ms - now:+.0f}", f"{100 * (ms / now - 1):+.1f} %"]
        for name, ms in least.items()
    ]
    settings = f"--steps {options.steps} --rounds {options.rounds} --dtype {options.dtype}"
    notes = {
        "work": f"GPT-2 124M shape, random weights, LoRA rank {RANK} on c_attn, dropout on, {options.dtype}, "
        f"batch {BATCH}, {common.labelled_texts()[0]} texts",
        "CPU time": common.undisturbed(done.values()),
        "a row": "rankwise with that change undone; each step's least of all rounds, averaged over steps",
    }
    header = ["with", "CPU time of a step, ms", "more, ms", "more"]
    title = "What each change for speed is worth in the step"
    common.write_record(
        title, f"python -m bench.ablation {settings}", notes, common.table(header, rows), options.record
    )


if __name__ == "__main__":
    main()
