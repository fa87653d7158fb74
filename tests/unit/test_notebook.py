"""Progress in notebooks and in IPython."""

from __future__ import annotations

import io
import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rankwise import sweep
from rankwise.progress import console as consoles
from rankwise.progress.choice import shown
from rankwise.progress.console import SafeConsole
from rankwise.progress.notebook import NotebookDisplay
from rankwise.report.ranks import compare
from rankwise.report.run import load
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback, Validation
from tests import tiny
from tests.unit.test_live import Clock

PROGRAM = """
from pathlib import Path
from rankwise import sweep
from tests import tiny
results = sweep(tiny.recipe(Path({base!r}), Path({data!r})), "run");
"""


class Display:
    """Stands in for `IPython.display.display`: it keeps what is displayed."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def __call__(self, shown: Any, display_id: bool) -> Any:
        assert display_id
        self.update(shown)
        return self

    def update(self, shown: Any) -> None:
        self.pages.append(shown._repr_html_())


def test_what_is_shown_while_a_sweep_trains() -> None:
    display, now = Display(), Clock()
    progress = NotebookDisplay(display, now)
    progress.bank("train", {"r1-s1": 1})
    progress.begin("train", 2500)
    for number in (1, 2, 3):
        now.seconds += 1.0
        progress.step(["r1-s1"], number, 2500, [0.5])
    assert "train: 3 of 2,500 steps, 3 s elapsed, about 42 min left" in display.pages[-1]
    assert '<progress max="2500" value="3">' in display.pages[-1]
    progress.begin("validation", 10)
    now.seconds += 1.0
    progress.advance(10)
    assert "validation: 10 of 10 texts" in display.pages[-1]
    progress.validation(Validation(["r1-s1"], 1, 3, 9, [0.915], [0.9], [0.3]))
    progress.note("<b>\x1b[2J")
    page = display.pages[-1]
    assert "epoch: accuracy on validation in %" in page and ">epoch 1<" in page and ">91.50<" in page
    assert "&lt;b&gt;\ufffd[2J" in page
    assert "r1-s1 | 0.500 | 91.50" in repr(progress)


def test_updates_are_rare() -> None:
    display, now = Display(), Clock()
    progress = NotebookDisplay(display, now)
    for number in range(100):
        now.seconds += 0.01
        progress.step(["r1-s1"], number + 1, 100, [0.5])
    assert len(display.pages) <= 1 + 2


def test_the_verdict_at_the_end(run: RunFolder) -> None:
    display = Display()
    NotebookDisplay(display).finished(run.path)
    verdict = compare(load(run)).verdict.splitlines()[0]
    assert verdict in display.pages[-1].replace("&#x27;", "'")
    assert f"written to {run.path}" in display.pages[-1] and "Classifier.load(" in display.pages[-1]
    assert "finished, " in display.pages[-1] and "<progress" not in display.pages[-1]


def test_a_script_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    given = Callback()
    with shown(given) as found:
        assert found is given
    with shown(None) as found:
        assert type(found) is Callback
    assert capsys.readouterr() == ("", "")


def test_the_terminal_of_ipython(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    monkeypatch.setattr(consoles, "stderr", SafeConsole(file=file, width=200))
    with shown(None) as found:
        found.begin("train", 4)
        found.finished(run.path)
    assert file.getvalue().startswith("train (4)\n") and f"written to {run.path}" in file.getvalue()


def test_a_notebook_that_is_run(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    """In a real kernel: one output, which is updated and ends with the verdict."""
    nbformat, nbclient = map(import_module, ("nbformat", "nbclient"))
    cell = nbformat.v4.new_code_cell(PROGRAM.format(base=str(gpt2_base), data=str(data_folder)))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the client and its event loop
        patch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
        nbclient.NotebookClient(
            notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    (output,) = [each for each in cell["outputs"] if each["output_type"] == "display_data"]
    verdict = compare(load(RunFolder(tmp_path / "run"))).verdict.splitlines()[0]
    page = output["data"]["text/html"]
    assert verdict in page.replace("&#x27;", "'") and "written to run" in page
    assert "adapter" in page and ">epoch 3<" in page


def test_a_sweep_tells_its_display_when_it_is_finished(
    gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    found: list[Path] = []

    class Ears(Callback):
        def finished(self, folder: Path) -> None:
            assert RunFolder(folder).is_complete()
            found.append(folder)

    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=1)
    sweep(recipe, tmp_path / "run", Ears())
    sweep(recipe, tmp_path / "run", Ears(), resume=True)
    assert found == [tmp_path / "run"] * 2
