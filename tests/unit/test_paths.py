"""Paths: `~`, no home folder, names that are not UTF-8, and relative paths in what is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankwise import Classifier, ModelError, Recipe, evaluate, sweep
from rankwise.cli.app import app
from rankwise.cli.terminal import show_note
from rankwise.commands.locate import anchored
from rankwise.errors import DataError, UsageError, option
from rankwise.models import packaged
from rankwise.paths import expanded
from rankwise.store.run_folder import RunFolder
from tests import tiny

BYTES = os.fsdecode(b"caf\xe9.csv")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without HOME and without an entry in the list of users; the temporary folder is `tmp`."""

    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "RANKWISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path


@pytest.mark.parametrize("path", ["~/x/y", "~", "x~", "~x", "/a/~/b", ""])
def test_the_home_folder(path: str, home: Path) -> None:
    assert expanded(path) == Path(os.path.expanduser(path))


@pytest.mark.parametrize("url", ["s3://bucket/run", "memory://run", "gs://a/b/../c"])
def test_urls_are_no_paths(url: str, home: Path, gpt2_base: Path, data_folder: Path) -> None:
    for path in (url, Path(url)):
        with pytest.raises(UsageError, match="a URL, not a path") as caught:
            expanded(path)
    assert caught.value.message.startswith(url.partition("//")[0] + "//")
    with pytest.raises(UsageError, match="a URL, not a path"):
        sweep(tiny.recipe(gpt2_base, data_folder), url)
    with pytest.raises(UsageError, match="a URL, not a path"):
        Recipe(data=url)
    done = CliRunner().invoke(app, ["sweep", "--base", str(gpt2_base), "--out", url])
    assert done.exit_code == 2 and "hint: mount it as a folder, or copy" in done.stderr
    (home.parent / "a:").mkdir()
    assert expanded("a:/b") == Path("a:/b")
    assert not (home.parent / url.partition("//")[0]).exists()


def test_without_a_home_folder(homeless: Path) -> None:
    assert expanded("x") == Path("x")
    for path in ("~/x", "~"):
        with pytest.raises(UsageError, match="there is no home folder"):
            expanded(path)
    with pytest.raises(UsageError, match="~/x: there is no home folder"):
        Recipe(data="~/x")


def test_the_cache_without_a_home_folder(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = homeless / "tmp" / f"rankwise-{os.getuid()}"
    assert packaged.cache_folder() == place
    assert f"unpacked into {place}; RANKWISE_CACHE" in packaged.cache_note()
    packaged._require_own(place / "model")
    assert place.stat().st_mode & 0o777 == 0o700
    place.chmod(0o777)
    with pytest.raises(ModelError, match="belongs to another user"):
        packaged._require_own(place / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(homeless / "cache"))
    assert packaged.cache_folder() == homeless / "cache" / "rankwise" and not packaged.cache_note()
    monkeypatch.setenv("RANKWISE_CACHE", "mine")
    assert packaged.cache_folder() == homeless / "mine" and not packaged.cache_note()
    monkeypatch.setenv("RANKWISE_CACHE", "~/mine")
    with pytest.raises(UsageError, match="there is no home folder"):
        packaged.cache_folder()


def test_the_hubs_cache_without_a_home_folder(tmp_path: Path) -> None:
    """huggingface_hub would create a folder called `~` in the working directory."""
    script = (
        "import os, pwd\n"
        "def unknown(user): raise KeyError(user)\n"
        "pwd.getpwuid = unknown\n"
        "from rankwise.models import base\n"
        "from huggingface_hub import constants\n"
        "print(constants.HF_HOME, constants.HF_HUB_CACHE)\n"
    )
    unset = ("HOME", "XDG_CACHE_HOME", "RANKWISE_CACHE")
    clean = {k: v for k, v in os.environ.items() if k not in unset and not k.startswith("HF_")}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean | {"TMPDIR": str(tmp_path), "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    place = tmp_path / f"rankwise-{os.getuid()}" / "huggingface"
    assert done.stdout.split() == [str(place), str(place / "hub")], done.stderr
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("cache", ["", "relative", "~/x"])
def test_a_cache_folder_that_is_not_absolute_does_not_count(
    cache: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert packaged.cache_folder() == homeless / "tmp" / f"rankwise-{os.getuid()}"


def test_paths_under_home_in_python(home: Path, gpt2_base: Path, data_folder: Path, adapter: Path) -> None:
    shutil.copytree(gpt2_base, home / "base")
    shutil.copytree(data_folder, home / "data")
    shutil.copytree(adapter, home / "adapter")
    recipe = tiny.recipe(Path("~/base"), Path("~/data"), ranks=(1,), epochs=1, baselines=False, cuts=False)
    assert (recipe.base, recipe.data.source) == (str(home / "base"), str(home / "data"))
    sweep(recipe, "~/run")
    assert RunFolder("~/run").path == home / "run" and (home / "run" / "results.json").exists()
    assert Classifier.load("~/adapter", base="~/base", device="cpu").labels == tiny.LABELS
    assert evaluate("~/adapter", "~/data/test.csv", device="cpu").texts == 12
    assert not Path("~").exists()


def test_paths_under_home_on_the_command_line(home: Path, data_folder: Path, adapter: Path) -> None:
    shutil.copytree(data_folder, home / "data")
    shutil.copytree(adapter, home / "adapter")
    done = CliRunner().invoke(app, ["evaluate", "~/adapter", "--data=~/data/test.csv", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["texts"] == 12
    arguments = ["predict", "~/adapter", "--input=~/data/test.csv", "--output=~/out.csv"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (home / "out.csv").exists() and not Path("~").exists()


def test_relative_paths_are_recorded_as_absolute(
    tmp_path: Path, gpt2_base: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter finds its base, and a run its data, from any folder."""
    shutil.copytree(gpt2_base, tmp_path / "mybase")
    shutil.copytree(data_folder, tmp_path / "mydata")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = tiny.recipe(Path("./mybase"), Path("mydata"), ranks=(1,), epochs=1, baselines=False, cuts=False)
    recipe = recipe.replace(test="mydata/test.csv")
    sweep(recipe, "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = Recipe.load(tmp_path / "run" / "recipe.toml")
    assert stored.base == str(tmp_path / "mybase")
    assert (stored.data.source, stored.data.test) == (
        str(tmp_path / "mydata"),
        str(tmp_path / "mydata/test.csv"),
    )
    assert Classifier.load("../run/adapters/r1-s110", device="cpu").labels == tiny.LABELS
    sweep(stored.replace(seeds=(7,)), "../run", resume=True)
    assert len(RunFolder("../run").read_results().adapters) == 2


def test_names_that_are_no_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("starter", "validation", "smollm2-135m"):
        (tmp_path / name).mkdir()
    recipe = Recipe(base="smollm2-135m", data="starter")
    assert anchored(recipe) == recipe
    recipe = Recipe(
        base="someone/model", data="dair-ai/emotion", validation="validation", data_config="split"
    )
    assert anchored(recipe) == recipe


def test_a_base_that_was_moved(adapter: Path, tmp_path: Path, gpt2_base: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "a", ignore=shutil.ignore_patterns("sha256.json"))
    path = folder / "adapter_config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"base_model_name_or_path": "./mybase"}))
    with pytest.raises(ModelError, match=r"its base model cannot be used: \./mybase: neither") as caught:
        Classifier.load(folder)
    assert str(folder) in caught.value.message and "base='FOLDER'" in caught.value.hint
    assert Classifier.load(folder, base=str(gpt2_base), device="cpu").labels == tiny.LABELS


def test_notes_name_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    show_note(f"{option('labels')} gives others")
    assert "note: --labels gives others" in capsys.readouterr().err


def test_names_that_are_not_utf8(adapter: Path, tmp_path: Path) -> None:
    """They cannot be written to recipe.toml or JSON. The message shows the bytes."""
    for settings in ({"data": BYTES}, {"base": BYTES}, {"validation": BYTES}, {"test": BYTES}):
        with pytest.raises(DataError, match=r"caf\\xe9\.csv: the name is not UTF-8"):
            Recipe(**settings)
    with pytest.raises(DataError, match="the name is not UTF-8"):
        evaluate(adapter, tmp_path / BYTES)
    tiny.write_csv(tmp_path / BYTES, tiny.rows(6, 1))
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", "evaluate", adapter, "--data", os.fsencode(tmp_path / BYTES)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 3 and "the name is not UTF-8" in done.stderr


@pytest.mark.parametrize(
    ("out", "cause"),
    [("n" * 300, "File name too long"), ("/sys/kernel/rankwise-run", "not permitted|denied|Read-only")],
)
def test_refusals_of_the_system(
    out: str, cause: str, gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    place = str(tmp_path / out)
    arguments = ["sweep", "--base", str(gpt2_base), "--data", str(data_folder), "--out", place]
    done = CliRunner().invoke(app, arguments)
    message = done.stderr.replace("\n", " ")
    assert done.exit_code == 6 and place in message, message
    assert any(word in message for word in cause.split("|"))
