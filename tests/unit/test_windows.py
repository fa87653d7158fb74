"""Long texts are read in windows: their tokens, the mean of their logits, and what is said."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from typer.testing import CliRunner

from rankwise import Classifier, UsageError, evaluate
from rankwise.cli.app import app
from rankwise.commands.predict import predict_file
from rankwise.commands.texts import LongTexts
from rankwise.data.pairs import pair_of
from rankwise.models import windows
from rankwise.models.long_texts import LONG, Cuts
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.inference import bank_logits
from rankwise.tasks.registry import task_of
from tests import tiny

WIDTH = 32  # the maximum length of the tiny recipe
TEXTS = [*tiny.texts(6, seed=3), "scared " * 40 + "glad", "so glad", "so cross and shaky " * 30 + "merry"]
LONG_TEXTS = (6, 8)
OPTIONS = ("--device", "cpu", "--precision", "float32")


@pytest.fixture(scope="module")
def windowed(adapter: Path) -> Classifier:
    return Classifier.load(adapter, device="cpu", precision="float32", windows=True, window_stride=WIDTH // 2)


@pytest.fixture
def tokenizer(gpt2_base: Path) -> Tokenizer:
    return Tokenizer.load(gpt2_base)


def framed(tokenizer: Tokenizer, *, pad: bool = False, keeps_end: bool = False) -> Tokenizer:
    """The tokenizer with a token before and a token after each text, the latter of which may be the pad."""
    backend = Backend.from_str(tokenizer._backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="! $A <|endoftext|>", special_tokens=[("!", backend.token_to_id("!")), ("<|endoftext|>", 0)]
    )
    return Tokenizer(tokenizer.folder, backend, pad_id=0 if pad else None, keeps_end=keeps_end)


# Tokens


@pytest.mark.parametrize(("tokens", "width", "stride"), [(5, 4, 1), (9, 4, 4), (100, 8, 3), (12, 4, 4)])
def test_windows_cover_a_text_and_are_full(tokens: int, width: int, stride: int) -> None:
    starts = windows.starts(tokens, width, stride)
    assert {at for start in starts for at in range(start, start + width)} == set(range(tokens))
    assert starts[0] == 0 and starts[-1] == tokens - width and sorted(set(starts)) == starts
    assert set(np.diff(starts[:-1])) <= {stride} and starts[-1] - starts[-2] <= stride


@pytest.mark.parametrize("keeps_end", [False, True])
@pytest.mark.parametrize("pad", [False, True])
def test_each_window_has_the_special_tokens(tokenizer: Tokenizer, pad: bool, keeps_end: bool) -> None:
    each = framed(tokenizer, pad=pad, keeps_end=keeps_end)
    text = "so cross and shaky today " * 4
    body = tokenizer([text], 500)[0].tolist()
    (found, short), cut = each.in_windows([text, "so glad"], 12, 5)
    starts = windows.starts(len(body), 10, 5)
    parts = [body[start : start + 10] for start in starts]
    if keeps_end:
        parts = [body[len(body) - 10 - start : len(body) - start] for start in starts]
    first, last = each(["so"], 12)[0][0], [] if pad else [0]
    assert [ids.tolist() for ids in found] == [[first, *part, *last] for part in parts]
    assert found[0].tolist() == each([text], 12)[0].tolist()
    assert [ids.tolist() for ids in short] == [ids.tolist() for ids in each(["so glad"], 12)]
    assert cut == 0 and len(found) > 3


@pytest.mark.parametrize("pad", [False, True])
def test_cut_texts_are_counted_whatever_ends_them(tokenizer: Tokenizer, pad: bool) -> None:
    """A pad token after each text is left out, so a cut text is shorter than the maximum length."""
    each = framed(tokenizer, pad=pad)
    size = int(each.lengths(["so cross and shaky"])[0])
    for length, cut in ((size, 0), (size - 1, 1)):
        assert each.in_windows(["so cross and shaky"], length, None)[1] == cut
        assert each.truncated(["so cross and shaky"], length) == cut


def test_a_text_of_a_window_has_one_window(tokenizer: Tokenizer) -> None:
    text = "so cross and shaky today"
    size = len(tokenizer([text], 500)[0])
    for width, number in ((size + 1, 1), (size, 1), (size - 1, 2)):
        (found,), _ = tokenizer.in_windows([text], width, 1)
        assert len(found) == number


@pytest.mark.parametrize("keeps_end", [False, True])
def test_windows_have_a_limit(tokenizer: Tokenizer, keeps_end: bool) -> None:
    each = framed(tokenizer, keeps_end=keeps_end)
    most = windows.most_tokens(6, 2)
    texts = ["glad " * 400 + "end", "so glad"]
    body = tokenizer([texts[0]], 5000)[0].tolist()
    assert len(body) > most, "the text is not above the limit: this test shows nothing"
    (found, _), cut = each.in_windows(texts, 8, 2)
    assert (len(found), cut) == (windows.MOST, 1)
    read = body[-most:] if keeps_end else body[:most]
    last = found[-1].tolist()[1:-1]
    assert last == (read[:6] if keeps_end else read[-6:])


def test_huge_texts_are_not_tokenized_as_a_whole(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "so glad and cross " * (LONG // 6)
    whole = Tokenizer(tokenizer.folder, Backend.from_str(tokenizer._backend.to_str()))
    whole.__dict__["_cuts"] = Cuts(1, None)
    sizes: list[int] = []
    encode = tokenizer._encode

    def spying(chunk: list[str]) -> list[Any]:
        sizes.extend(map(len, chunk))
        return encode(chunk)

    monkeypatch.setattr(tokenizer, "_encode", spying)
    (found,), cut = tokenizer.in_windows([text], 16, 8)
    (expected,), _ = whole.in_windows([text], 16, 8)
    assert cut == 1 and max(sizes) < LONG
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


# Logits


def test_short_texts_are_bit_identical(classifier: Classifier, windowed: Classifier) -> None:
    one, other = classifier.logits(TEXTS), windowed.logits(TEXTS)
    short = [i for i in range(len(TEXTS)) if i not in LONG_TEXTS]
    np.testing.assert_array_equal(one[short], other[short])
    assert (one[list(LONG_TEXTS)] != other[list(LONG_TEXTS)]).any(axis=1).all()


def test_the_logits_are_the_mean_over_windows(windowed: Classifier) -> None:
    found = windowed.logits(TEXTS)
    for i in LONG_TEXTS:
        (ids,) = windowed._tokenizer([TEXTS[i]], 1000)
        starts = [*range(0, len(ids) - WIDTH, WIDTH // 2), len(ids) - WIDTH]
        parts = [ids[start : start + WIDTH] for start in starts]
        alone = np.array([bank_logits(windowed._backbone, windowed._head, [part])[0, 0] for part in parts])
        np.testing.assert_allclose(found[i], alone.mean(axis=0), atol=1e-5)


def test_the_end_of_a_long_text_counts(classifier: Classifier, windowed: Classifier) -> None:
    start = "so " * 40
    texts = [start + "glad", start + "furious"]
    one, other = classifier.logits(texts)
    np.testing.assert_array_equal(one, other)
    one, other = windowed.logits(texts)
    assert np.abs(one - other).max() > 0.01


def test_a_stride_of_a_window_has_no_overlap(adapter: Path) -> None:
    """It is the default."""
    loaded = Classifier.load(adapter, device="cpu", windows=True)
    assert loaded.window_stride == WIDTH
    size = int(loaded._tokenizer.lengths(TEXTS)[6])
    assert loaded.long_texts([TEXTS[6]]) == LongTexts(0, 1, -(-size // WIDTH))


def test_probabilities_labels_and_abstaining_follow(windowed: Classifier) -> None:
    logits = windowed.logits(TEXTS)
    np.testing.assert_array_equal(windowed.predict_proba(TEXTS), windowed.probabilities(logits))
    assert windowed.predict(TEXTS) == [windowed.labels[i] for i in logits.argmax(axis=1)]
    assert windowed.predict(TEXTS, abstain_below=1.0) == [None] * len(TEXTS)


def like(classifier: Classifier, **options: Any) -> Classifier:
    """A classifier with the same weights and windows, and other options."""
    network = (classifier._backbone, classifier._head, classifier._tokenizer)
    stride = classifier.window_stride
    return Classifier(*network, classifier.labels, WIDTH, window_stride=stride, **options)


def test_several_labels(windowed: Classifier) -> None:
    several = like(windowed, task=task_of("multi-label", "|"), thresholds=[0.4, 0.5, 0.6])
    np.testing.assert_array_equal(several.logits(TEXTS), windowed.logits(TEXTS))
    shares = expit(windowed.logits(TEXTS).astype(np.float64))
    expected = [
        tuple(
            label for label, p, least in zip(several.labels, row, (0.4, 0.5, 0.6), strict=True) if p >= least
        )
        for row in shares
    ]
    assert several.predict_labels(TEXTS) == expected


def test_pairs(windowed: Classifier) -> None:
    """The two texts of a pair are joined, and the windows are those of the joined text."""
    pairs = like(windowed, text_columns=("premise", "hypothesis"))
    given = [["so " * 30, "glad " * 30], ["so", "glad"]]
    joined = [pair_of(number, pair, ("premise", "hypothesis")) for number, pair in enumerate(given, 1)]
    np.testing.assert_array_equal(pairs.logits(given), windowed.logits(joined))
    assert pairs.long_texts(joined).windowed == 1


def test_a_pickled_classifier_reads_windows(windowed: Classifier) -> None:
    copy = pickle.loads(pickle.dumps(windowed))
    assert copy.window_stride == WIDTH // 2
    np.testing.assert_array_equal(copy.logits(TEXTS), windowed.logits(TEXTS))


def test_no_texts(windowed: Classifier) -> None:
    assert windowed([]) == [] and windowed.long_texts([]) == LongTexts()


def test_explaining(windowed: Classifier) -> None:
    text = "so " * 40 + "glad"
    assert len(windowed.explain(text).words) == 41
    assert windowed.explain("so very glad", method="gradient").words
    with pytest.raises(UsageError, match="one window of 32 tokens") as caught:
        windowed.explain(text, method="gradient")
    assert "method='occlusion'" in caught.value.hint


# Errors


@pytest.mark.parametrize("stride", [0, -1, WIDTH + 1, 2.5, True])
def test_strides_that_cannot_be(adapter: Path, stride: Any) -> None:
    with pytest.raises(UsageError, match=f"window_stride={stride}: a window has 32 tokens") as caught:
        Classifier.load(adapter, device="cpu", windows=True, window_stride=stride)
    assert "from 1 to 32" in caught.value.hint


def test_a_stride_needs_windows(adapter: Path) -> None:
    with pytest.raises(UsageError, match="texts are not read in windows") as caught:
        Classifier.load(adapter, device="cpu", window_stride=8)
    assert "windows=True" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "ADAPTER", "so glad", "--window-stride", "8"], "add --windows"),
        (["predict", "ADAPTER", "so glad", "--windows", "--window-stride", "33"], "--window-stride 33"),
        (
            ["predict", "ADAPTER", "so glad", "--windows", "--window-stride", "0"],
            "not a whole number of at least 1",
        ),
        (["predict", "name", "so glad", "--windows", "--url", "http://127.0.0.1:9"], "a server cuts"),
        (["evaluate", "ADAPTER", "DATA", "--windows", "--window-stride", "99"], "--window-stride 99"),
    ],
)
def test_the_command_line_refuses(adapter: Path, data_folder: Path, words: list[str], said: str) -> None:
    places = {"ADAPTER": str(adapter), "DATA": str(data_folder / "test.csv")}
    result = CliRunner().invoke(app, [places.get(word, word) for word in words])
    assert result.exit_code == 2
    assert said in result.stderr


# What is said, and files


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(windows, "MOST", 5)
    yield 5


def expected_windows(classifier: Classifier) -> int:
    sizes = classifier._tokenizer.lengths([TEXTS[i] for i in LONG_TEXTS])
    return int(sum(len(windows.starts(int(size), WIDTH, WIDTH // 2)) for size in sizes))


def test_a_file(classifier: Classifier, windowed: Classifier, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    notes: list[str] = []
    predict_file(windowed, source, target, on_note=notes.append)
    number = expected_windows(windowed)
    assert f"2 of 9 texts read in windows of 32 tokens, {number} windows in all" in notes
    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert [row["predicted_label"] for row in rows] == windowed.predict(TEXTS)
    notes.clear()
    predict_file(classifier, source, tmp_path / "cut.jsonl", on_note=notes.append)
    assert "2 of 9 texts cut at 32 tokens" in notes and not any("windows" in note for note in notes)


def test_the_limit_is_said(windowed: Classifier, tmp_path: Path, limit: int) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    notes: list[str] = []
    predict_file(windowed, source, tmp_path / "out.jsonl", on_note=notes.append)
    assert notes[-1] == f"{windowed.truncated(TEXTS)} of 9 texts cut at {limit} windows"
    assert windowed.truncated(TEXTS) == 1


def test_evaluating(windowed: Classifier, adapter: Path, tmp_path: Path) -> None:
    labels = [list(tiny.LABELS)[i % 3] for i in range(len(TEXTS))]
    path = tiny.write_csv(tmp_path / "long.csv", list(zip(TEXTS, labels, strict=True)))
    notes: list[str] = []
    found = evaluate(windowed, path, on_note=notes.append)
    right = [one == other for one, other in zip(windowed.predict(TEXTS), labels, strict=True)]
    assert found.accuracy == pytest.approx(np.mean(right))
    assert any("2 of 9 texts read in windows" in note for note in notes)
    result = CliRunner().invoke(
        app, ["evaluate", str(adapter), str(path), *OPTIONS, "--windows", "--window-stride", "8", "--json"]
    )
    assert result.exit_code == 0 and "2 of 9 texts read in windows of 32 tokens" in result.stderr
    by_hand = Classifier.load(adapter, device="cpu", precision="float32", windows=True, window_stride=8)
    assert json.loads(result.stdout)["log_loss"] == pytest.approx(evaluate(by_hand, path).log_loss)


def test_predicting_on_the_command_line(windowed: Classifier, adapter: Path) -> None:
    words = ["predict", str(adapter), *TEXTS, *OPTIONS, "--windows", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert [row["label"] for row in json.loads(result.stdout)] == windowed.predict(TEXTS)
    assert "2 of 9 texts read in windows of 32 tokens" in result.stderr
    result = CliRunner().invoke(app, ["predict", str(adapter), "so glad", *OPTIONS, "--windows"])
    assert "windows" not in result.stderr
