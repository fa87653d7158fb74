"""Sweeps on a local Ray cluster of two workers: the same bytes as without one, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from rankwise import Classifier, Recipe, UsageError, search, sweep
from rankwise.commands.bank import train_banks
from rankwise.commands.predict import Counts
from rankwise.commands.texts import LongTexts
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback
from tests import tiny

pytest.importorskip("ray", reason="the extra rankwise[ray] is not installed")

from rankwise.cluster.banks import Cluster
from rankwise.cluster.pool import Pool
from rankwise.cluster.predict import Labeler, _claim, _Labeling, predict_folder

FULL = os.environ.get("RANKWISE_FAULTS") == "full"
in_full = pytest.mark.skipif(not FULL, reason="make faults runs it: a Ray cluster takes half a minute")
SAME = ("predictions.csv", "history.jsonl", "results.json", "table.md", "samples.md", "recipe.toml")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster with room for two workers of one core."""
    with Cluster("local", cpus=1, workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def recipe(gpt2_base: Path, data_folder: Path) -> Recipe:
    """Four banks: rank 0, and two ranks alone."""
    return tiny.recipe(gpt2_base, data_folder, ranks=(0, 1, 2, 4), bank_size=1)


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a sweep without a cluster."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    sweep(recipe, folder)
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a run that must be reproducible."""
    found = {name: (folder / name).read_bytes() for name in SAME}
    for part in ("adapters", "logits"):
        for path in sorted((folder / part).rglob("*.*")):
            found[str(path.relative_to(folder))] = path.read_bytes()
    assert not (folder / "checkpoint").exists()
    return found


def workers() -> list[psutil.Process]:
    """The processes of workers that this process has started."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if any("ray::Worker" in part for part in each.cmdline()[:1])]


class Killer(Callback):
    """Kills some workers after a number of steps, and counts what happens."""

    def __init__(self, number: int = 0) -> None:
        self.number, self.steps, self.notes, self.stages = number, 0, list[str](), list[str]()
        self.last = 0, 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, total: int | None) -> None:
        self.stages.append(stage)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        self.steps += 1
        self.last = number, steps
        victims, self.number = workers()[: self.number], 0
        for each in victims:
            each.send_signal(signal.SIGKILL)
        psutil.wait_procs(victims, timeout=10)


def test_the_same_bytes(cluster: Cluster, recipe: Recipe, whole: dict[str, bytes], tmp_path: Path) -> None:
    seen = Killer()
    sweep(recipe, tmp_path / "run", seen, train=cluster)
    assert content(tmp_path / "run") == whole
    assert "train: 4 banks" in seen.stages
    assert (seen.steps, seen.last) == (4 * 18, (4 * 18, 4 * 18))
    assert len(workers()) == 2


@in_full
@pytest.mark.parametrize("number", [1, 2])
def test_workers_are_killed(
    cluster: Cluster, recipe: Recipe, whole: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    """Their banks go on elsewhere."""
    seen = Killer(number)
    sweep(recipe, tmp_path / "run", seen, train=cluster)
    assert content(tmp_path / "run") == whole
    lost = [note for note in seen.notes if note.startswith("a worker is lost; the bank of r")]
    assert 1 <= len(lost) <= number


PROGRAM = """
import json, os, sys
from rankwise import Recipe, sweep
from rankwise.cluster.banks import Cluster
from rankwise.commands.predict import Counts
from rankwise.commands.texts import LongTexts
from rankwise.store.run_folder import RunFolder
from rankwise.training import signals
from rankwise.training.callbacks import Callback

recipe, folder, number = sys.argv[1:]

class Dies(Callback):
    def validation(self, found):
        os.kill(os.getpid(), int(number))

try:
    with signals.stopping(), Cluster("local", cpus=1, workers=2) as cluster:
        sweep(Recipe.load(recipe), folder, Dies(), train=cluster)
except signals.Interrupted as error:
    sys.exit(error.exit_status)
"""


@in_full
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_the_driver_is_killed(
    cluster: Cluster, recipe: Recipe, whole: dict[str, bytes], tmp_path: Path, number: int, status: int
) -> None:
    """Its workers end with it, and a run that is resumed, on a cluster or not, ends in the same way.

    Ray has a handler of its own for SIGTERM, which must not replace ours.
    """
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    arguments = [
        sys.executable,
        "-c",
        PROGRAM,
        str(tmp_path / "recipe.toml"),
        str(tmp_path / "run"),
        str(int(number)),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    assert "*** SIGTERM" not in done.stderr
    sweep(recipe, tmp_path / "run", resume=True, train=cluster)
    assert content(tmp_path / "run") == whole


@in_full
def test_a_tuned_sweep(cluster: Cluster, gpt2_base: Path, tmp_path: Path) -> None:
    """Trials, too, are trained by the workers."""
    for seed, (split, size) in enumerate({"train": 240, "validation": 18}.items()):
        tiny.write_csv(tmp_path / "data" / f"{split}.csv", tiny.rows(size, seed))
    recipe = tiny.recipe(
        gpt2_base,
        tmp_path / "data",
        ranks=(1, 2),
        tune=True,
        learning_rates=(0.01, 0.03),
        epochs=1,
        bank_size=1,
        baselines=False,
        cuts=False,
    )
    seen = Killer()
    sweep(recipe, tmp_path / "run", seen, train=cluster)
    sweep(recipe, tmp_path / "whole")
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert any(stage.startswith("tune: ") for stage in seen.stages)


def test_workers_of_a_local_cluster() -> None:
    """They share the memory of this machine."""
    cluster = Cluster("local", cpus=1, workers=2)
    assert cluster.workers == cluster.workers_here == min(2, os.cpu_count() or 1)


def test_no_cluster_at_the_address(recipe: Recipe, tmp_path: Path) -> None:
    """On the command line; no run folder is left behind."""
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    command = [sys.executable, "-m", "rankwise", "sweep", "--recipe", "recipe.toml", "--ray", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 5, done.stderr
    assert "error: no Ray cluster at 127.0.0.1:1" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="a cluster needs the package ray") as caught:
        Cluster("local")
    assert caught.value.hint == "pip install 'rankwise[ray]'"


@in_full
def test_a_search(cluster: Cluster, gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    """Rung by rung: the result is the same with another number of workers."""
    recipe = tiny.recipe(
        gpt2_base, data_folder, ranks=(1, 2), tune=True, learning_rates=(0.01, 0.02), epochs=6, bank_size=1
    )
    found = search(recipe, tmp_path / "run", train=cluster)
    alone = search(recipe, tmp_path / "alone", train=lambda *given: train_banks(*given))
    assert found == alone
    files = (
        "search.json",
        "history.jsonl",
        "recipe.toml",
        f"adapters/{found.best}/adapter_model.safetensors",
    )
    for name in files:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert len(found.trials) == 4


# Labels of a folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of three Parquet files, one of them in a folder."""
    for number, name in enumerate(("a.parquet", "b.parquet", "more/c.parquet")):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"text": tiny.texts(4 + number, number)}), path)
    return tmp_path / "texts"


def labels(folder: Path) -> dict[str, list[str]]:
    found = sorted(folder.rglob("*.parquet"))
    return {
        str(path.relative_to(folder)): parquet.read_table(path)["predicted_label"].to_pylist()
        for path in found
    }


@in_full
def test_a_folder_is_labeled(adapter: Path, classifier: Classifier, texts: Path, tmp_path: Path) -> None:
    """Once: files that are there are kept, one that cannot be read is named, and the others are labeled."""
    (texts / "bad.parquet").write_bytes(b"nothing")
    given: dict[str, Any] = {"cpus": 1, "workers": 2, "loading": {"device": "cpu", "precision": "float32"}}
    arguments = json.dumps([str(adapter), str(texts), str(tmp_path / "labels"), given])
    # Of its own process, because this one may be connected to the cluster of other tests.
    program = (
        "import json, sys; from rankwise.cluster.predict import predict_folder\n"
        "adapter, source, target, given = json.loads(sys.argv[1])\n"
        "print(predict_folder(adapter, source, target, 'local', on_note=print, **given))\n"
    )

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    first = run()
    assert "bad.parquet: " in first.stderr and "the other 3 files were labeled" in first.stderr
    found = labels(tmp_path / "labels")
    assert found == {
        name: classifier.predict(parquet.read_table(texts / name)["text"].to_pylist())
        for name in ("a.parquet", "b.parquet", "more/c.parquet")
    }
    (texts / "bad.parquet").unlink()
    (tmp_path / "labels" / "b.parquet").unlink()
    before = (tmp_path / "labels" / "a.parquet").stat().st_mtime_ns
    assert run().stdout == "b.parquet: text: text\nLabeled(files=1, rows=5, skipped=2)\n"
    assert labels(tmp_path / "labels") == found
    assert (tmp_path / "labels" / "a.parquet").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    """A multi-label adapter of a finished run."""
    folder = tmp_path_factory.mktemp("several")
    recipe = tiny.recipe(gpt2_base, tiny.multi_folder(folder / "data"), ranks=(1,), task="multi-label")
    sweep(recipe.replace(epochs=1, baselines=False), folder / "run")
    return folder / "run" / "adapters" / "r1-s110"


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    """The run folder of an adapter of pairs."""
    folder = tmp_path_factory.mktemp("paired")
    rows = tiny.rows(40, seed=1)
    data = {"one": tiny.texts(40, 2), "two": [text for text, _ in rows], "label": [y for _, y in rows]}
    parquet.write_table(pa.table(data), folder / "train.parquet")
    recipe = tiny.recipe(gpt2_base, folder / "train.parquet", ranks=(1,), text_columns=("one", "two"))
    sweep(recipe.replace(epochs=1, baselines=False), folder / "run")
    return folder / "run"


@in_full
def test_pairs_and_abstaining(paired: Path, tmp_path: Path) -> None:
    """On the command line, in two steps: a threshold belongs to the labels of a folder."""
    source, target = tmp_path / "texts", tmp_path / "labels"
    source.mkdir()
    texts = tiny.texts(12, 3), tiny.texts(12, 4)
    parquet.write_table(pa.table(dict(zip(("a", "b"), texts, strict=True))), source / "x.parquet")
    words = ["predict", str(paired), "--input", str(source), "--output", str(target), "--ray", "local"]
    words += ["--ray-cpus", "1", "--device", "cpu", "--precision", "float32", "--text-columns", "a,b"]
    pairs = list(zip(*texts, strict=True))
    ours = Classifier.load(paired, device="cpu", precision="float32")
    limit = sorted(found.probability for found in ours(pairs))[6]

    def run(limit: float) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rankwise", *words, "--abstain-below", str(limit)]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    done = run(limit)
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(target / "x.parquet")
    assert table.column_names[:3] == ["a", "b", "predicted_label"]
    said = [label or None for label in table["predicted_label"].to_pylist()]
    assert said == ours.predict(pairs, abstain_below=limit)
    assert said.count(None) == 6
    again = run(0.9)
    assert again.returncode == 2 and "has labels of another adapter, or of other options" in again.stderr


def test_a_worker_writes_lists_of_labels(several: Path, texts: Path, tmp_path: Path) -> None:
    labeler = Labeler(1, str(several), {"device": "cpu", "precision": "float32"})
    found = labeler.label(str(texts / "a.parquet"), str(tmp_path / "a.parquet"), {"abstain_below": None})
    assert found == (Counts(4), ["text: text"])
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names[1] == "predicted_labels"
    expected = labeler.classifier.predict_labels(table["text"].to_pylist())
    assert table["predicted_labels"].to_pylist() == [list(labels) for labels in expected]


def test_notes_on_files_are_summed(adapter: Path, texts: Path, tmp_path: Path) -> None:
    """As the driver does: notes of one kind once, and numbers of texts for all files together."""
    long = pa.table({"id": ["1", "2"], "text": ["so glad " * 200, "so cross"]})
    for name in ("long.parquet", "more/longer.parquet"):
        parquet.write_table(long, texts / name)
    labeler = Labeler(1, str(adapter), {"device": "cpu", "precision": "float32"})
    labeling = _Labeling(Pool(None, lambda: None, lambda: 1), print)
    for path in sorted(texts.rglob("*.parquet")):
        target = tmp_path / "labels" / path.relative_to(texts)
        labeling.keep(path, *labeler.label(str(path), str(target), {}))
    assert labeling.summary() == ["3 files: text: text", "2 files: text: text; kept as they are: id"]
    assert sum(labeling.done.values(), Counts()) == Counts(19, 0, LongTexts(cut=2))


def test_a_classifier_that_cannot_be_loaded_is_no_lost_worker(
    adapter: Path, texts: Path, tmp_path: Path
) -> None:
    labeler = Labeler(1, str(adapter), {"windows": True, "window_stride": 999})
    with pytest.raises(UsageError, match="window_stride"):
        labeler.label(str(texts / "a.parquet"), str(tmp_path / "a.parquet"), {})


@pytest.mark.parametrize(
    ("adapter_of", "reading", "message"),
    [
        ("several", {"abstain_below": 0.5}, "a multi-label classifier has thresholds of its own"),
        ("several", {"text_columns": ("a", "b")}, "this adapter takes one text, not a pair"),
        ("paired", {"text_column": "a"}, "this adapter takes pairs of one and two, not one text"),
        ("paired", {"text_columns": ("a",)}, "text_columns: give the names of two columns"),
        ("paired", {"abstain_below": 1.5}, "abstain_below=1.5: not a probability"),
    ],
)
def test_options_that_do_not_suit_the_adapter(
    adapter_of: str,
    reading: dict[str, Any],
    message: str,
    texts: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Before a cluster is looked for, and before the folder is written."""
    with pytest.raises(UsageError, match=message):
        predict_folder(
            request.getfixturevalue(adapter_of), texts, tmp_path / "labels", "nowhere:1", reading=reading
        )
    assert not (tmp_path / "labels").exists()


def test_labels_of_two_adapters_are_not_mixed(run: RunFolder, texts: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels"
    _claim(target, run.adapters / "r1-s110", {"device": "cpu"}, {})
    with pytest.raises(UsageError, match="has labels of another adapter"):
        predict_folder(run.adapters / "r4-s110", texts, target, "local", loading={"device": "cpu"})
    with pytest.raises(UsageError, match="has no Parquet files"):
        predict_folder(run.adapters / "r4-s110", run.adapters, target, "local")
