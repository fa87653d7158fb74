"""Kernels for CUDA devices, in Triton: attention within short texts, and the hashes of dropout masks.

torch has kernels for both, but runs them as dozens of small ones, each of which reads and writes all its
numbers in the device's memory. Most of a step went into them, not into matrix products.

**Attention.** A text of up to `MOST_TOKENS` tokens fits into one block of threads. One program computes one
head of one text, from its rows of the packed batch, and keeps scores and weights in registers::

    rows of qkv        text 0            text 1                 text 2
                       [start .. last]   [start .. last]        [start .. last]
    programs           (0, h)            (1, h)                 (2, h)           for each head h

The texts need not be of one length, so neither length buckets nor a gather are needed. The backward pass
computes the weights again instead of storing them. One of its programs has all query heads that share a
key head, and sums their gradients in a fixed order, so results do not change from run to run.

**Masks.** The bits are those of `static.masks`, where the hash is defined.

The formulas of attention are those in `attention`, with scores in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _hashed(x):
    """lowbias32 of unsigned 32-bit words, as `static.masks._hashed`."""
    x = x + 0x9E3779B9
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _half(word, number):
    """The upper 16 bits of a word for an odd number, else the lower; in the order of signed integers."""
    return ((word >> ((number % 2) * 16)) & 0xFFFF) ^ 0x8000


@triton.jit
def decide(kept, keys, numbers, thresholds, adapters, row, numbers_of_adapter, BLOCK: tl.constexpr):
    """The mask bits of one key: two for each number.

    Args:
        kept: (keys, 2 * row) uint8, written.
        keys: (keys,) int32; those of `adapters` adapters follow each other.
        numbers: (row,) int32, or (adapters, row).
        thresholds: (adapters,) int32, 65,536 times the dropout rate.
        adapters: number of adapters.
        row: numbers of one key.
        numbers_of_adapter: `row` if each adapter has its own numbers, else 0.
        BLOCK: bits of one program.
    """
    key, bits = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = bits < 2 * row
    adapter = key % adapters
    number = tl.load(numbers + adapter * numbers_of_adapter + bits // 2, inside, 0).to(tl.uint32)
    word = _hashed(tl.load(keys + key).to(tl.uint32) ^ _hashed(number))
    half = _half(word, bits.to(tl.uint32)).to(tl.int32)
    place = key.to(tl.int64) * 2 * row + bits
    tl.store(kept + place, (half >= tl.load(thresholds + adapter)).to(tl.uint8), inside)


@triton.jit
def _weights(
    q, k, rows, length, scale, keys, texts, text, head, crc, threshold, texts_of_adapter,
    HEADS: tl.constexpr, QUERIES: tl.constexpr, POOLED: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention weights (queries, keys) float32 of one head of one text, and which of them are kept."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    seen = (rows[None, :] <= rows[:, None]) & (rows[None, :] < length)
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    kept = seen
    if DROPOUT:
        mask_key = _hashed(tl.load(keys + text // texts_of_adapter).to(tl.uint32) ^ crc.to(tl.uint32))
        of_head = (tl.load(texts + text) * HEADS + head).to(tl.uint32)
        head_key = _hashed(mask_key ^ _hashed(of_head))
        queries = rows * 0 if POOLED else rows
        number = queries[:, None] * QUERIES + rows[None, :] // 2
        word = _hashed(head_key ^ _hashed(number.to(tl.uint32)))
        kept = _half(word, rows[None, :].to(tl.uint32)).to(tl.int32) >= threshold
    return weights, kept


@triton.jit
def attention_forward(
    out, qkv, last, positions, keys, texts, crc, threshold, texts_of_adapter, scale, kept_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    QUERIES: tl.constexpr, POOLED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head of one text.

    Args:
        out: (rows, HEADS * DIM), written; a row for each token, or for each text if POOLED.
        qkv: (tokens, HEADS + 2 * KV_HEADS, DIM).
        last: (texts,) int64, row of each text's last token.
        positions: (tokens,) int64.
        keys: (adapters,) int32, of this step; not used without DROPOUT, as the next four.
        texts: (texts,) int32, each text's number in its adapter's batch.
        crc: CRC-32 of the mask's name, as a signed integer.
        threshold: 65,536 times the dropout rate.
        texts_of_adapter: texts of each adapter.
        scale: 1 / sqrt(DIM).
        kept_scale: 1 / (1 - rate).
        WIDE: DIM, rounded up to a power of two.
        BLOCK: power of two, at least the number of tokens of a text.
        QUERIES: `static.masks.MOST_QUERIES`.
        PRECISION: of products in float32.
    """
    text, head = tl.program_id(0), tl.program_id(1)
    end = tl.load(last + text)
    length = (tl.load(positions + end) + 1).to(tl.int32)
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside = (rows[:, None] < length) & (columns[None, :] < DIM)
    token = (end - length + 1 + rows)[:, None] * (HEADS + 2 * KV_HEADS)
    kv_head = HEADS + head // (HEADS // KV_HEADS)
    q = tl.load(qkv + (token + head) * DIM + columns[None, :], inside, 0.0)
    k = tl.load(qkv + (token + kv_head) * DIM + columns[None, :], inside, 0.0)
    v = tl.load(qkv + (token + kv_head + KV_HEADS) * DIM + columns[None, :], inside, 0.0)
    weights, kept = _weights(
        q, k, rows, length, scale, keys, texts, text, head, crc, threshold, texts_of_adapter,
        HEADS, QUERIES, POOLED, DROPOUT, PRECISION,
    )  # fmt: skip
    weights = tl.where(kept, weights, 0.0).to(v.dtype)
    result = tl.dot(weights, v, input_precision=PRECISION) * kept_scale
    if POOLED:
        place, inside = (text + rows * 0)[:, None], inside & (rows[:, None] == length - 1)
    else:
        place = (end - length + 1 + rows)[:, None]
    tl.store(out + (place * HEADS + head) * DIM + columns[None, :], result.to(v.dtype), inside)


@triton.jit
def attention_backward(
    d_qkv, d_out, qkv, last, positions, keys, texts, crc, threshold, texts_of_adapter, scale, kept_scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    QUERIES: tl.constexpr, POOLED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All query heads that share one key head, of one text.

    Args:
        d_qkv: as qkv, written for the tokens of texts.
        d_out: as the result of `attention_forward`, whose other arguments are the same.
    """
    text, shared = tl.program_id(0), tl.program_id(1)
    end = tl.load(last + text)
    length = (tl.load(positions + end) + 1).to(tl.int32)
    rows, columns = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside = (rows[:, None] < length) & (columns[None, :] < DIM)
    row = (end - length + 1 + rows)[:, None]
    token = row * (HEADS + 2 * KV_HEADS)
    k_place = (token + HEADS + shared) * DIM + columns[None, :]
    v_place = (token + HEADS + KV_HEADS + shared) * DIM + columns[None, :]
    k, v = tl.load(qkv + k_place, inside, 0.0), tl.load(qkv + v_place, inside, 0.0)
    d_k, d_v = tl.zeros((BLOCK, WIDE), tl.float32), tl.zeros((BLOCK, WIDE), tl.float32)
    for i in range(HEADS // KV_HEADS):
        head = shared * (HEADS // KV_HEADS) + i
        q_place = (token + head) * DIM + columns[None, :]
        q = tl.load(qkv + q_place, inside, 0.0)
        if POOLED:
            answered = inside & (rows[:, None] == length - 1)
            place = ((text + rows * 0)[:, None] * HEADS + head) * DIM + columns[None, :]
        else:
            answered = inside
            place = (row * HEADS + head) * DIM + columns[None, :]
        d_result = tl.load(d_out + place, answered, 0.0)
        weights, kept = _weights(
            q, k, rows, length, scale, keys, texts, text, head, crc, threshold, texts_of_adapter,
            HEADS, QUERIES, POOLED, DROPOUT, PRECISION,
        )  # fmt: skip
        dropped = tl.where(kept, weights, 0.0).to(v.dtype)
        d_v += tl.dot(tl.trans(dropped), d_result, input_precision=PRECISION) * kept_scale
        d_weights = tl.dot(d_result, tl.trans(v), input_precision=PRECISION) * kept_scale
        d_weights = tl.where(kept, d_weights, 0.0)
        d_scores = weights * (d_weights - tl.sum(d_weights * weights, 1)[:, None])
        d_scores = d_scores.to(v.dtype)
        d_q = tl.dot(d_scores, k, input_precision=PRECISION) * scale
        tl.store(d_qkv + q_place, d_q.to(v.dtype), inside)
        d_k += tl.dot(tl.trans(d_scores), q, input_precision=PRECISION) * scale
    tl.store(d_qkv + k_place, d_k.to(v.dtype), inside)
    tl.store(d_qkv + v_place, d_v.to(v.dtype), inside)


@triton.jit
def norm_forward(y, x, weight, bias, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CENTERED: tl.constexpr):
    """Layer norm, or RMS norm if not CENTERED, of one row.

    Args:
        y: (rows, WIDTH), written.
        x: (rows, WIDTH) float32.
        weight: (WIDTH,) float32.
        bias: (WIDTH,) float32; not used by RMS norm.
        eps: added to the mean square.
        BLOCK: power of two, at least WIDTH.
    """
    columns = tl.arange(0, BLOCK)
    inside, place = columns < WIDTH, tl.program_id(0).to(tl.int64) * WIDTH + columns
    row = tl.load(x + place, inside, 0.0)
    if CENTERED:
        row = tl.where(inside, row - tl.sum(row, 0) / WIDTH, 0.0)
    scale = 1 / tl.sqrt(tl.sum(row * row, 0) / WIDTH + eps)
    normed = row * scale * tl.load(weight + columns, inside, 0.0)
    if CENTERED:
        normed += tl.load(bias + columns, inside, 0.0)
    tl.store(y + place, normed.to(y.dtype.element_ty), inside)


@triton.jit
def norm_backward(dx, dy, x, weight, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CENTERED: tl.constexpr):
    """The gradient of one row: with n the normed row and g = weight * dy, (g - mean(g) - n mean(g n)) / sd.

    Args:
        dx: (rows, WIDTH) float32, written.
        dy: (rows, WIDTH).
        x: (rows, WIDTH) float32, and the others as in `norm_forward`.
    """
    columns = tl.arange(0, BLOCK)
    inside, place = columns < WIDTH, tl.program_id(0).to(tl.int64) * WIDTH + columns
    row = tl.load(x + place, inside, 0.0)
    weighted = tl.load(dy + place, inside, 0.0).to(tl.float32) * tl.load(weight + columns, inside, 0.0)
    if CENTERED:
        row = tl.where(inside, row - tl.sum(row, 0) / WIDTH, 0.0)
    scale = 1 / tl.sqrt(tl.sum(row * row, 0) / WIDTH + eps)
    normed = row * scale
    gradient = weighted - normed * (tl.sum(weighted * normed, 0) / WIDTH)
    if CENTERED:
        gradient -= tl.sum(weighted, 0) / WIDTH
    tl.store(dx + place, gradient * scale, inside)


@triton.jit
def add_dropped_forward(y, x, branch, kept, scale, size, BLOCK: tl.constexpr):
    """y = x + scale * kept * branch, all (size,): x and y float32, kept uint8."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    added = tl.load(branch + places, inside, 0.0).to(tl.float32) * scale
    added = tl.where(tl.load(kept + places, inside, 0) != 0, added, 0.0)
    tl.store(y + places, tl.load(x + places, inside, 0.0) + added, inside)


@triton.jit
def add_dropped_backward(d_branch, dy, kept, scale, size, BLOCK: tl.constexpr):
    """d_branch = scale * kept * dy, in d_branch's dtype."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    gradient = tl.where(
        tl.load(kept + places, inside, 0) != 0, tl.load(dy + places, inside, 0.0) * scale, 0.0
    )
    tl.store(d_branch + places, gradient.to(d_branch.dtype.element_ty), inside)


@triton.jit
def swiglu_forward(y, gate_up, width, BLOCK: tl.constexpr):
    """silu(gate) * up, of (rows, 2 * width) with the gate first; y is (rows, width)."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, row = columns < width, tl.program_id(0).to(tl.int64)
    gate = tl.load(gate_up + row * 2 * width + columns, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, inside, 0.0).to(tl.float32)
    tl.store(y + row * width + columns, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), inside)


@triton.jit
def swiglu_backward(d_gate_up, dy, gate_up, width, BLOCK: tl.constexpr):
    """The gradient of `swiglu_forward`, d_gate_up (rows, 2 * width), from dy (rows, width)."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, row = columns < width, tl.program_id(0).to(tl.int64)
    place = row * 2 * width + columns
    gate = tl.load(gate_up + place, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + place + width, inside, 0.0).to(tl.float32)
    given = tl.load(dy + row * width + columns, inside, 0.0).to(tl.float32)
    open_ = tl.sigmoid(gate)
    d_gate = given * up * open_ * (1 + gate * (1 - open_))
    tl.store(d_gate_up + place, d_gate.to(d_gate_up.dtype.element_ty), inside)
    tl.store(d_gate_up + place + width, (given * gate * open_).to(d_gate_up.dtype.element_ty), inside)


@triton.jit
def turn(
    out, x, cosines, sines, sign, heads, all_heads, DIM: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Rotate one token's heads by its position; see `rotary`.

    Args:
        out: (tokens, all_heads, DIM), written.
        x: the same shape.
        cosines: (tokens, HALF), as x; `sines` too.
        sign: 1, or -1 for the gradient.
        heads: number of heads to rotate; the others are copied.
        ROWS: power of two, at least all_heads.
        PAIRS: power of two, at least HALF and DIM - 2 * HALF.
    """
    token, rows, pairs = tl.program_id(0).to(tl.int64), tl.arange(0, ROWS)[:, None], tl.arange(0, PAIRS)
    inside, turned = (rows < all_heads) & (pairs < HALF)[None, :], rows < heads
    cos = tl.load(cosines + token * HALF + pairs, pairs < HALF, 0.0).to(tl.float32)
    sin = tl.load(sines + token * HALF + pairs, pairs < HALF, 0.0).to(tl.float32) * sign
    cos, sin = tl.where(turned, cos[None, :], 1.0), tl.where(turned, sin[None, :], 0.0)
    place = token * all_heads * DIM + rows * DIM + pairs[None, :]
    a = tl.load(x + place, inside, 0.0).to(tl.float32)
    b = tl.load(x + place + HALF, inside, 0.0).to(tl.float32)
    tl.store(out + place, (a * cos - b * sin).to(out.dtype.element_ty), inside)
    tl.store(out + place + HALF, (b * cos + a * sin).to(out.dtype.element_ty), inside)
    if 2 * HALF < DIM:
        rest = (rows < all_heads) & (pairs < DIM - 2 * HALF)[None, :]
        tl.store(out + place + 2 * HALF, tl.load(x + place + 2 * HALF, rest, 0.0), rest)


@triton.jit
def adamw(
    weight, gradient, exp_avg, exp_avg_sq, parts, rates, decays, first, second, clips, size,
    BETA_1: tl.constexpr, BETA_2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One update of AdamW (arXiv 1711.05101) with settings of each part; zeroes the gradient.

    Args:
        weight: (size,) float32, updated, as `exp_avg` and `exp_avg_sq`.
        gradient: (size,) float32.
        parts: (size,) int32, the part of each element, which indexes the next five, all float32.
        rates: learning rates.
        decays: weight decays.
        first: 1 - BETA_1 ** step.
        second: 1 - BETA_2 ** step.
        clips: factors on the gradient.
    """
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    part = tl.load(parts + places, inside, 0)
    given = tl.load(gradient + places, inside, 0.0) * tl.load(clips + part)
    rate = tl.load(rates + part)
    mean = BETA_1 * tl.load(exp_avg + places, inside, 0.0) + (1 - BETA_1) * given
    square = BETA_2 * tl.load(exp_avg_sq + places, inside, 0.0) + (1 - BETA_2) * given * given
    root = tl.sqrt(square) / tl.sqrt(tl.load(second + part)) + EPS
    kept = tl.load(weight + places, inside, 0.0) * (1 - rate * tl.load(decays + part))
    tl.store(weight + places, kept - rate / tl.load(first + part) * mean / root, inside)
    tl.store(exp_avg + places, mean, inside)
    tl.store(exp_avg_sq + places, square, inside)
    tl.store(gradient + places, tl.zeros((BLOCK,), tl.float32), inside)  # also where it is not finite
