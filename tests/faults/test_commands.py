"""Random commands exit with a documented status, no traceback, and no files outside their folder."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import datasets.config
import huggingface_hub.constants
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rankwise.cli.app import app
from rankwise.recipe import Recipe
from rankwise.store.run_folder import RunFolder

COUNT = 2000 if os.environ.get("RANKWISE_FAULTS") == "full" else 60
DOCUMENTED = range(8)

JUNK = st.sampled_from(
    ["", "x", "-1", "0", "1.5", "nan", "1e999", "../here/x", "/", ".", "\ud800", "é\n", "[red]x", "a,b", ",",
     "--", "-", "a" * 300, "a\0b", "9" * 30, "none/such", "starter", "gpt2", "null", "=1+1", "{}", "\x1b[31m"]
) | st.text(max_size=12)  # fmt: skip
"""Unusual values; plausible ones are in `Place.values`."""
SETTINGS = {f"--{name.replace('_', '-')}": name for name in Recipe.settings()}
VALUES = {
    "--ranks": ["0", "1", "1,2", "1,1", "5000", "0,x"],
    "--seeds": ["1", "1,2", "-1"],
    "--epochs": ["1", "0"],
    "--batch-size": ["8", "0"],
    "--max-length": ["16", "0", "1"],
    "--alpha-mode": ["fixed", "ratio", "rslora", "wavy"],
    "--device": ["cpu", "cuda:7", "tpu", "auto"],
    "--precision": ["float32", "bfloat16", "int8"],
    "--labels": ["joy,anger,fear", "joy", "a,b"],
    "--targets": ["c_attn", "all-linear", "none", "h.0.attn.c_attn"],
    "--last-layers": ["1", "2", "9"],
    "--schedule": ["cosine"],
    "--keep": ["best", "last"],
    "--memory-gb": ["0.000001", "1"],
    "--validation-fraction": ["0.5", "1", "0"],
    "--preset": ["emotion", "none"],
    "--seed": ["1", "-1", "x"],
    "--rank": ["1", "3", "4", "0", "-1", "x"],
    "--margin": ["0", "-1", "x", "1e308"],
    "--metric": ["accuracy", "log-loss", "macro-f1", "f1"],
    "--method": ["occlusion", "gradient", "guess"],
    "--abstain-below": ["0", "0.5", "1", "2", "nan", "x"],
    "--window-stride": ["8", "0", "1000", "x"],
    "--text-column": ["text", "label", "none"],
    "--label-column": ["label", "text"],
    "--adapter": ["r4-s110", "r1-s110", "r9-s9", "../r4-s110"],
}
FLAGS = ("--json", "--safe-csv", "--windows", "--base-dropout", "--no-base-dropout", "--help", "--nonsense")
VERBS = {
    "sweep": ("--out", "--recipe", "--preset", *SETTINGS),
    "plan": ("--recipe", "--preset", *SETTINGS),
    "evaluate": (
        *("--data", "--text-column", "--label-column", "--base", "--device", "--precision"),
        *("--abstain-below", "--window-stride"),
    ),
    "predict": (
        *("--input", "--output", "--text-column", "--base", "--device", "--precision"),
        *("--abstain-below", "--window-stride"),
    ),
    "explain": ("--base", "--device", "--precision", "--method"),
    "cut": ("--rank", "--out"),
    "samples": ("--adapter", "--seed"),
    "compare": ("--margin", "--metric"),
    "reproduce": ("--out", "--device"),
    "version": (),
    "none": ("--out",),
}


class Place:
    """A folder with data, a base model, a run and unrelated files; all writes must stay inside it."""

    def __init__(self, folder: Path, base: Path, data: Path, run: RunFolder) -> None:
        self.folder = folder
        shutil.copytree(base, folder / "base")
        shutil.copytree(data, folder / "data")
        shutil.copytree(run.path, folder / "run")
        (folder / "bad.csv").write_bytes(b"text,label\n\xff,x\n")
        (folder / "empty.jsonl").write_bytes(b"")
        (folder / "bad.toml").write_text("ranks = [1\n")
        (folder / "good.toml").write_text((folder / "run" / "recipe.toml").read_text())
        adapter = "run/adapters/r4-s110"
        paths = ["data", "data/test.csv", "data/none.csv", "bad.csv", "empty.jsonl", "base", "run", adapter]
        self.values = VALUES | {
            "--data": paths,
            "--validation": paths,
            "--test": paths,
            "--input": paths,
            "--base": ["base", "none", "run", "data/test.csv"],
            "--recipe": ["good.toml", "bad.toml", "none.toml", "run"],
            "--out": ["run", "new", "base/config.json", "new/deeper"],
            "--output": ["o.csv", "o.jsonl", "o.parquet", "o.txt", "run", "none/o.csv", "/dev/null"],
        }
        self.arguments = [adapter, "run", "run/adapters/r0-s110", "base", "data/test.csv", "none", "so glad"]
        self.before = self.listing()

    def listing(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def lines(self) -> st.SearchStrategy[list[str]]:
        return st.sampled_from(sorted(VERBS)).flatmap(self._line)

    def _line(self, verb: str) -> st.SearchStrategy[list[str]]:
        """The command with a tiny base model, so that nothing large is trained, plus random arguments."""
        small = ["--base", "base", "--epochs", "1", "--ranks", "1", "--data", "data"]
        start = [verb, *small] if verb in ("sweep", "plan") else [verb]
        own = [self._option(name) for name in VERBS[verb]] or [st.just(["--json"])]
        word = st.sampled_from(self.arguments) | JUNK
        part = st.one_of(*own, st.sampled_from(FLAGS).map(lambda flag: [flag]), word.map(lambda w: [w]))
        first = [self.arguments[:3]] if verb in ("evaluate", "predict", "cut", "samples", "compare") else []
        lead = st.sampled_from(first[0]).map(lambda w: [w]) if first else st.just([])
        rest = st.lists(part, max_size=5).map(lambda parts: [word for part in parts for word in part])
        return st.tuples(lead, rest).map(lambda both: start + both[0] + both[1])

    def _option(self, name: str) -> st.SearchStrategy[list[str]]:
        if name == "--base-dropout":
            return st.just([name])
        junk = JUNK
        if name in ("--base", "--epochs", "--ranks"):  # a valid large number would train for hours
            junk = st.sampled_from(["", "x", "-1", "1.5", "\ud800", "a\0b", "nan"])
        known = st.sampled_from(self.values[name]) if name in self.values else junk
        return (known | junk).map(lambda value: [name, value])


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, data_folder: Path, run: RunFolder
) -> Iterator[Place]:
    """The working folder. The network is blocked, and attempts to use it raise a distinct error."""

    def refuse(*args: Any) -> NoReturn:
        raise OSError("no network in this test")

    folder = tmp_path_factory.mktemp("commands") / "here"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HOME", str(folder.parent / "hub"))
        patch.setenv("RANKWISE_CACHE", str(folder.parent / "cache"))
        yield Place(folder, gpt2_base, data_folder, run)


@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_command_lines(place: Place, data: st.DataObject) -> None:
    line = data.draw(place.lines())
    result = CliRunner().invoke(app, line)
    assert result.exit_code in DOCUMENTED, (line, result.output)
    assert result.exception is None or isinstance(result.exception, SystemExit), line
    assert "Traceback" not in result.output and "internal error" not in result.output
    if result.exit_code:
        assert result.stderr.strip(), line
    tidy(place)


def tidy(place: Place) -> None:
    """Check that files were only written inside the folder, and remove them."""
    assert {path.name for path in place.folder.parent.iterdir()} <= {"here", "hub", "cache"}
    for name in sorted(place.listing() - place.before, reverse=True):
        path = place.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("option", [["--out", "run"], ["--out", "base/config.json/x"], ["--none"], ["x"]])
def test_quickstart_where_it_cannot_run(place: Place, option: list[str]) -> None:
    result = CliRunner().invoke(app, ["quickstart", *option])
    assert result.exit_code == 2 and "Traceback" not in result.output
