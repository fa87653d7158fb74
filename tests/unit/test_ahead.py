"""Reading ahead in a background thread: order, bounds, errors, and an early end."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from rankwise import Classifier, DataError
from rankwise.commands.predict import predict_file
from rankwise.commands.texts import EncodedTexts
from rankwise.data.ahead import ahead


def test_the_next_batch_is_read_in_another_thread_and_no_further() -> None:
    threads: list[threading.Thread] = []

    def batches() -> Generator[int, None, None]:
        for number in range(5):
            threads.append(threading.current_thread())
            yield number

    with closing(ahead(batches())) as found:
        for number in found:
            assert number == len(threads) - 1 or number == len(threads) - 2  # at most one is ahead
    assert len(threads) == 5 and threading.current_thread() not in threads


def test_an_error_comes_in_its_place() -> None:
    def batches() -> Generator[int, None, None]:
        yield 1
        raise DataError("no more")

    found = ahead(batches())
    assert next(found) == 1
    with pytest.raises(DataError, match="no more"):
        next(found)


def test_an_early_end_closes_the_source_and_its_thread() -> None:
    closed: list[bool] = []

    def batches() -> Generator[int, None, None]:
        try:
            yield from range(5)
        finally:
            closed.append(True)

    before = threading.active_count()
    with closing(ahead(batches())) as found:
        assert next(found) == 0
    assert closed == [True]
    assert threading.active_count() == before


def test_encoded_texts_are_not_tokenized_again(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["so glad", "so cross " * 100]
    expected, cut = classifier.logits(texts), classifier.truncated(texts)
    encoded = classifier.encoded(texts)
    assert isinstance(encoded, EncodedTexts) and encoded == texts
    monkeypatch.setattr(type(classifier._tokenizer), "__call__", lambda *arguments: pytest.fail("again"))
    assert (classifier.logits(encoded) == expected).all()
    assert classifier.truncated(encoded) == cut == 1


def test_progress_of_a_file(classifier: Classifier, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("text\n" + "so glad\n" * 2000, "utf-8")
    told: list[tuple[str, int | None]] = []
    read: list[int] = []
    for suffix in (".csv", ".jsonl"):
        done: list[int] = []
        predict_file(
            classifier,
            source,
            tmp_path / f"out{suffix}",
            on_stage=lambda stage, rows: told.append((stage, rows)),
            on_read=read.append,
            on_rows=done.append,
        )
        assert done == [1024, 976]
    assert told == [("read", None), ("predict", 2000), ("predict", None)]
    assert read == [1024, 976]
