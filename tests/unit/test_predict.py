"""A text's prediction does not depend on its batch; predict files keep their rows and add columns."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from rankwise import Classifier, DataError, ModelError, UsageError
from rankwise.commands.predict import predict_file
from rankwise.data.tables import BATCH_ROWS
from rankwise.nn import inference
from rankwise.nn.batch import PackedBatch
from rankwise.nn.ragged import batch as packing
from tests import tiny

TEXTS = [*tiny.texts(12, seed=5), "x", "glad " * 40, "naïve 😀 日本語", "  spaces around  ", "a\nline\r\nend"]

Row = dict[str, Any]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write rows of strings in any format without using rankwise."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Row]:
    if path.suffix in (".csv", ".tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t"))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows: list[Row] = pq.read_table(path).to_pylist()
    return rows


# A list of texts


def test_answers_stand_in_the_order_of_the_texts(classifier: Classifier) -> None:
    expected = dict(zip(TEXTS, classifier(TEXTS), strict=True))
    for seed in range(3):
        shuffled = random.Random(seed).sample(TEXTS, len(TEXTS))
        for text, found in zip(shuffled, classifier(shuffled), strict=True):
            assert found.label == expected[text].label
            assert found.probabilities == pytest.approx(expected[text].probabilities, abs=1e-5)


def test_a_text_alone_is_answered_as_among_others(classifier: Classifier) -> None:
    together = classifier.predict_proba(TEXTS)
    alone = np.concatenate([classifier.predict_proba([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    assert [found.label for found in classifier(TEXTS)] == [classifier([text])[0].label for text in TEXTS]


def test_the_company_of_many_windows_changes_nothing(classifier: Classifier) -> None:
    many = TEXTS * 40  # more tokens than fit in one forward pass
    np.testing.assert_allclose(
        classifier.predict_proba(many), np.tile(classifier.predict_proba(TEXTS), (40, 1)), atol=1e-5, rtol=0
    )


def test_a_prediction_is_its_most_probable_label(classifier: Classifier) -> None:
    for found in classifier(TEXTS):
        assert list(found.probabilities) == list(classifier.labels) == list(tiny.LABELS)
        assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-9)
        assert found.probability == max(found.probabilities.values()) == found.probabilities[found.label]


def test_keywords_are_recognised(classifier: Classifier) -> None:
    held_out = tiny.rows(30, seed=77)
    right = [
        found.label == label
        for (_, label), found in zip(held_out, classifier([t for t, _ in held_out]), strict=True)
    ]
    assert np.mean(right) > 0.6


def test_no_texts_no_answers(classifier: Classifier) -> None:
    assert classifier([]) == []
    assert classifier.logits([]).shape == (0, 3)


@pytest.mark.parametrize("text", ["", "  \n\t", "\u2003"])
def test_an_empty_text_is_refused(classifier: Classifier, text: str) -> None:
    with pytest.raises(DataError, match="text 2 is empty"):
        classifier(["fine", text])


def test_what_is_no_list_of_strings_is_refused(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="a list of texts"):
        classifier("so glad")
    with pytest.raises(DataError, match="text 2 is missing"):
        classifier(["fine", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="surrogate"):
        classifier(["\ud800"])


def test_a_typed_special_token_is_plain_text(classifier: Classifier, adapter: Path) -> None:
    typed = AutoTokenizer.from_pretrained(adapter)("so glad<|endoftext|>").input_ids
    assert typed[-1] == 0, "the tokenizer has no such special token: this test shows nothing"
    ids = classifier._tokenizer(["so glad<|endoftext|>"], 32)[0]
    assert 0 not in ids and len(ids) > len(typed)
    assert classifier(["so glad<|endoftext|>"])[0].probability < 1


def test_a_long_text_loses_its_end(classifier: Classifier) -> None:
    start = "scared " * 40  # more than the recipe's 32 tokens
    one, other = classifier.predict_proba([start + "glad", start + "furious"])
    np.testing.assert_array_equal(one, other)


def test_another_base_is_refused(adapter: Path, llama_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no linear layer h\.0\.attn\.c_attn"):
        Classifier.load(adapter, base=str(llama_base))
    with pytest.raises(UsageError, match="unknown precision 'float16'"):
        Classifier.load(adapter, precision="float16")
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        Classifier.load(adapter, device="tpu")


def test_a_tokenizer_of_another_model(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["glad"])
    tokenizer.save_pretrained(copy)
    (copy / "sha256.json").unlink()
    other = Classifier.load(copy, device="cpu", precision="float32")
    assert other(["so merry"])[0].label in tiny.LABELS
    with pytest.raises(ModelError, match="the tokenizer gives token"):
        other(["so glad"])


def test_bfloat16_answers_alike(classifier: Classifier, adapter: Path) -> None:
    rounded = Classifier.load(adapter, device="cpu", precision="bfloat16")
    np.testing.assert_allclose(rounded.logits(TEXTS), classifier.logits(TEXTS), rtol=0.1, atol=0.2)


# Files


@pytest.mark.parametrize("suffix_in", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
@pytest.mark.parametrize("suffix_out", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_keeps_its_rows_and_columns(
    classifier: Classifier, tmp_path: Path, suffix_in: str, suffix_out: str
) -> None:
    lines_only = suffix_in == ".txt"
    texts = [text for text in TEXTS if "\n" not in text] if lines_only else TEXTS
    rows: list[Row] = [{"id": f"n{i}", "text": text, "note": 'a "b", c'} for i, text in enumerate(texts)]
    source = write_rows(tmp_path / f"in{suffix_in}", rows)
    if lines_only:
        rows = [{"text": row["text"]} for row in rows]
    target = tmp_path / f"out{suffix_out}"
    batches: list[int] = []
    assert predict_file(classifier, source, target, on_rows=batches.append) == len(rows)
    assert sum(batches) == len(rows)
    written = read_rows(target)
    added = ["predicted_label", *(f"probability_{label}" for label in tiny.LABELS)]
    assert [list(row) for row in written] == [[*rows[0], *added]] * len(rows)
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    for row, found in zip(written, classifier(texts), strict=True):
        assert row["predicted_label"] == found.label
        shares = [float(row[f"probability_{label}"]) for label in tiny.LABELS]
        assert shares == pytest.approx(list(found.probabilities.values()), abs=1e-5)


def test_values_keep_their_types(classifier: Classifier, tmp_path: Path) -> None:
    rows = [
        {"text": text, "n": i, "x": i / 2, "flag": i == 1, "tags": ["a"] * i, "none": None}
        for i, text in enumerate(TEXTS[:3])
    ]
    source = write_rows(tmp_path / "in.parquet", rows)
    for suffix in (".parquet", ".jsonl"):
        predict_file(classifier, source, tmp_path / f"out{suffix}")
        written = read_rows(tmp_path / f"out{suffix}")
        assert [{name: row[name] for name in rows[0]} for row in written] == rows


@pytest.fixture
def ragged(tmp_path: Path) -> tuple[Path, list[Row]]:
    """JSON Lines whose second batch of rows has other columns than the first."""
    text = {"text": "so glad"}
    rows: list[Row] = [
        {**text, "late": None, "n": 1, "x": 1, "nested": {}, "list": [], "mixed": 1}
        for _ in range(BATCH_ROWS)
    ]
    rows += [
        {**text, "late": "here", "n": 2, "x": 2.5, "nested": {"a": 1}, "list": ["b"], "mixed": "two"},
        {**text, "new": True, "nested": {"b": None}, "mixed": [3]},
        {"new": None, **text, "late": "half \ud83d of a pair", "n": None},
    ]
    return write_rows(tmp_path / "in.jsonl", rows), rows


def test_json_lines_keep_ragged_rows(
    classifier: Classifier, tmp_path: Path, ragged: tuple[Path, list[Row]]
) -> None:
    source, rows = ragged
    assert predict_file(classifier, source, tmp_path / "out.jsonl") == len(rows)
    written = read_rows(tmp_path / "out.jsonl")
    assert [{k: v for k, v in row.items() if not k.startswith("p")} for row in written] == rows


def test_parquet_takes_ragged_rows(
    classifier: Classifier, tmp_path: Path, ragged: tuple[Path, list[Row]]
) -> None:
    source, rows = ragged
    assert predict_file(classifier, source, tmp_path / "out.parquet") == len(rows)
    written = read_rows(tmp_path / "out.parquet")
    assert [row["late"] for row in written[-4:]] == [None, "here", None, "half \\ud83d of a pair"]
    assert [row["n"] for row in written[-4:]] == [1, 2, None, None]
    assert [row["x"] for row in written[-4:]] == [1.0, 2.5, None, None]
    assert [row["new"] for row in written[-4:]] == [None, None, True, None]
    assert [row["mixed"] for row in written[-4:]] == ["1", "two", "[3]", None]
    assert [row["list"] for row in written[-4:]] == [[], ["b"], None, None]
    assert written[-3]["nested"] == {"a": 1, "b": None}


def test_csv_takes_ragged_rows(
    classifier: Classifier, tmp_path: Path, ragged: tuple[Path, list[Row]]
) -> None:
    source, rows = ragged
    assert predict_file(classifier, source, tmp_path / "out.csv") == len(rows)
    written = read_rows(tmp_path / "out.csv")
    assert [row["new"] for row in written[-4:]] == ["", "", "true", ""]
    assert [row["nested"] for row in written[-4:]] == ["{}", '{"a": 1}', '{"b": null}', ""]
    assert [row["late"] for row in written[-4:]] == ["", "here", "", "half \\ud83d of a pair"]


def test_the_file_can_be_written_over(classifier: Classifier, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "same.csv", [{"text": text} for text in TEXTS])
    with pytest.raises(UsageError, match=r"same\.csv: already exists"):
        predict_file(classifier, path, path)
    assert predict_file(classifier, path, path, overwrite=True) == len(TEXTS)
    assert [row["text"] for row in read_rows(path)] == TEXTS


def test_the_text_column_can_be_named(classifier: Classifier, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.csv", [{"a": "so glad", "b": "so cross", "c": "1"}])
    with pytest.raises(DataError, match="no column for the text"):
        predict_file(classifier, source, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    predict_file(classifier, source, tmp_path / "out.csv", text_column="b")
    assert read_rows(tmp_path / "out.csv")[0]["predicted_label"] == classifier(["so cross"])[0].label


@pytest.mark.parametrize("name", ["out.xls", "out.json", "out"])
def test_an_unknown_suffix_is_refused(classifier: Classifier, tmp_path: Path, name: str) -> None:
    source = write_rows(tmp_path / "in.csv", [{"text": "so glad"}])
    with pytest.raises(UsageError, match="cannot write") as caught:
        predict_file(classifier, source, tmp_path / name)
    assert ".parquet or .xlsx" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def empty_text(rows: list[Row]) -> None:
    rows[-1]["text"] = " "


def no_text(rows: list[Row]) -> None:
    del rows[-1]["text"]


def number(rows: list[Row]) -> None:
    rows[-1]["text"] = 7


@pytest.mark.parametrize("spoil", [empty_text, no_text, number])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_bad_row_leaves_nothing_behind(
    classifier: Classifier, tmp_path: Path, spoil: Callable[[list[Row]], None], suffix: str
) -> None:
    rows: list[Row] = [{"text": "so glad"} for _ in range(BATCH_ROWS + 2)]
    spoil(rows)
    source = write_rows(tmp_path / "in.jsonl", rows)
    target = tmp_path / f"out{suffix}"
    target.write_text("as it was")
    with pytest.raises(DataError, match=rf"in\.jsonl:{len(rows)}: the text is"):
        predict_file(classifier, source, target, overwrite=True)
    assert target.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.jsonl", target.name])


def test_what_texts_begin_with_in_common_is_computed_once(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicate texts and texts with a shared prefix only cost their new tokens."""
    rows: list[int] = []

    def spying(*args: Any, **options: Any) -> PackedBatch:
        packed = packing.pack(*args, **options)
        rows.append(len(packed.ids))
        return packed

    monkeypatch.setattr(inference, "pack", spying)
    for texts in (["so i feel glad today"], ["so i feel", "so i feel glad today", "so i feel glad today"]):
        classifier(texts)
    assert rows[0] == rows[1]
