"""Model cards: valid Hub metadata, escaped text, no invented facts."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from rankwise import Classifier
from rankwise.recipe import Recipe
from rankwise.report import build, card
from rankwise.store.run_folder import RunFolder
from tests.made import made_run
from tests.unit.hostile import LABELS, TEXTS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = made_run(tmp_path_factory.mktemp("made") / "emotions", accuracies={0: 0.6, 4: 0.9}, seeds=(0, 1))
    build.rebuild(run)
    return run


def metadata(text: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_hub_reads_it(made: RunFolder) -> None:
    path = made.adapters / "r4-s0" / "README.md"
    found = ModelCard.load(path).data
    row = next(row for row in made.read_results().adapters if row.name == "r4-s0")
    assert (found.base_model, found.library_name) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "peft")
    assert (found.pipeline_tag, found.datasets) == ("text-classification", ["dair-ai/emotion"])
    results = {(each.dataset_split, each.metric_type): each.metric_value for each in found.eval_results or []}
    assert row.test is not None
    for split, metrics in (("validation", row.validation), ("test", row.test)):
        assert results[split, "accuracy"] == pytest.approx(metrics.accuracy, abs=1e-6)
        assert results[split, "f1"] == pytest.approx(metrics.macro_f1, abs=1e-6)


def test_an_edited_card_is_left_as_it_is(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.6, 4: 0.9}, seeds=(0,))
    build.rebuild(made)
    edited, own = made.adapters / "r4-s0" / "README.md", made.path / "README.md"
    before = own.read_text("utf-8")
    text = edited.read_text("utf-8").replace("license: other", "license: apache-2.0")
    edited.write_text(text, "utf-8")
    own.unlink()
    build.rebuild(made, margin=0.2)
    assert edited.read_text("utf-8") == text
    assert "apache-2.0" not in (made.adapters / "r1-s0" / "README.md").read_text("utf-8")
    assert own.read_text("utf-8") != before, "a card that is not edited is written again"


def test_words_and_labels_have_spaces(made: RunFolder) -> None:
    """Values are escaped, which removes spaces at their ends."""
    for name in ("r0-s0", "r4-s0"):
        text = (made.adapters / name / "README.md").read_text("utf-8")
        labels = made.read_results().labels
        assert f"Labels, in the order of the outputs: {', '.join(labels)}\n" in text
        assert f"that classifies texts into {len(labels)} classes.\n" in text


@pytest.mark.parametrize("merged", [True, False])
def test_cards_of_several_labels_and_of_pairs(merged: bool) -> None:
    values: dict[str, Any] = {"labels": ("a b", "c"), "base": "gpt2", "rank": 4, "max_length": 32}
    plain = card.hub_card("me/it", **values, merged=merged)
    several = card.hub_card("me/it", **values, merged=merged, several=True)
    pairs = card.hub_card("me/it", **values, merged=merged, pair=("premise", "hypothesis"))
    assert "assigns one of the labels" in plain and "line break" not in plain
    assert "gives a text any number of 2 labels" in several and "assigns one of the labels" not in several
    assert ("settings.thresholds" if merged else "[0].labels)") in several
    assert "pairs of premise and hypothesis, joined by a line break\n- Texts are truncated" in pairs
    assert ('classify("some text\\nanother text"' if merged else '[("some text", "another text")]') in pairs


def test_the_license_is_left_to_the_publisher(made: RunFolder) -> None:
    text = (made.adapters / "r4-s0" / "README.md").read_text("utf-8")
    assert metadata(text)["license"] == "other"
    assert re.search(r"^license: other  # to be filled in", text, re.MULTILINE)


def test_every_adapter_has_one_and_the_run_too(made: RunFolder) -> None:
    results = made.read_results()
    for row in results.adapters:
        text = (made.adapters / row.name / "README.md").read_text("utf-8")
        assert f"seed {row.seed}" in text and f"{100 * row.validation.accuracy:.2f}" in text
        assert ("PEFT has no rank 0" in text) == (row.rank == 0)
        assert all(label in text for label in results.labels)
        assert f"max_length={Recipe.load(made.recipe).train.max_length}" in text
    own = (made.path / "README.md").read_text("utf-8")
    assert "rankwise sweep --recipe emotions/recipe.toml --out emotions-again" in own
    assert "| majority class |" in own


def test_a_folder_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={4: 0.9}, seeds=(0,))
    (made.adapters / "r4-s0" / "adapter_config.json").unlink()
    (made.adapters / "r4-s0").rmdir()
    build.rebuild(made)
    assert not (made.adapters / "r4-s0").exists()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={4: 0.7}, seeds=(0,), labels=LABELS, texts=TEXTS)
    evil = 'x"\n---\nlicense: mit\n# <b>*y*</b> ```'
    results = made.read_results().model_copy(update={"base": evil})
    made.results.write_text(results.model_dump_json(), "utf-8")
    recipe = Recipe.load(
        made.recipe, data="data/it's: {a} & <b>.csv", data_config="- !!python/name:os.system"
    )
    made.recipe.write_text(recipe.to_toml(), "utf-8")
    build.rebuild(made)
    for path in (made.path / "README.md", made.adapters / "r4-s0" / "README.md"):
        text = path.read_text("utf-8")
        body = text
        if path.parent.name == "r4-s0":
            found = metadata(text)
            assert found["license"] == "other" and "datasets" not in found and "base_model" not in found
            body = text.split("---\n", 2)[2]
            assert 'from_pretrained(\n    "BASE",' in text
        body, _, mark = body.rpartition(card.MARK)
        assert re.fullmatch(r" SHA-256 [0-9a-f]{64} -->\n", mark)
        tokens = MarkdownIt("commonmark").enable("table").parse(body)
        inline = [child for token in tokens for child in token.children or []]
        assert {token.type for token in [*tokens, *inline]} & {
            "html_block",
            "html_inline",
            "link_open",
            "image",
        } == set()
        assert text.count("\n```") % 2 == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("someone/their-model", "someone/their-model"),
        ("/home/me/model", None),
        ("./model", None),
        ("a/b/c", None),
    ],
)
def test_what_the_hub_calls_a_base(name: str, expected: str | None) -> None:
    assert card.hub_base(name) == expected


def test_what_the_cards_import_exists(made: RunFolder) -> None:
    text = (made.adapters / "r4-s0" / "README.md").read_text("utf-8")
    imports = re.findall(r"^from (rankwise[\w.]*) import (\w+)", text, re.MULTILINE)
    assert len(imports) == 2
    assert all(hasattr(import_module(module), name) for module, name in imports)


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # PEFT's and transformers' own
def test_the_code_in_the_card_runs(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Both loading snippets in a real adapter's card give the same predictions."""
    folder = run.adapters / "r4-s110"
    text = (folder / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        code = block.replace("FOLDER", str(folder)).replace('"BASE"', repr(run.read_results().base))
        exec(compile(code, "card", "exec"), {})
    first, second = capsys.readouterr().out.split()
    assert first == second == Classifier.load(folder, device="cpu")(["some text"])[0].label
