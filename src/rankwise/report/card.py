"""Model cards: README.md of each adapter, with metadata for the Hub, and of the run.

The metadata follows the Hub's format (huggingface.co/docs/hub/model-cards). For anything that rankwise
cannot know, such as the license, the card has a placeholder to fill in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from rankwise.recipe import Recipe
from rankwise.report.drawing import png_names
from rankwise.report.run import Run
from rankwise.report.samples import sample_table
from rankwise.report.scores import metrics_of, splits
from rankwise.report.tables import Table, class_figures, escape, one_line, percent, rank_table
from rankwise.report.verdict import Chosen
from rankwise.schema import AdapterResult, Comparison, Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, command, slug

HUB_NAMES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
"""Short name of a base -> its name on the Hub."""
PACKAGED = "smollm2-135m"
"""The base from a Python package, whose weights are 4-bit quantized and differ from the Hub's."""
MARK = "<!-- Written by rankwise, which leaves an edited card as it is."
"""Start of a card's last line, a comment with the digest of what is above it."""
MOST_CLASSES = 30
"""Maximum number of classes in the table of a card; if there are more, the weakest are shown."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LICENSE = (
    "license: other  # to be filled in: the license under which you publish, which the base's must allow"
)


def write_cards(folder: RunFolder, run: Run, comparison: Comparison, choice: Chosen) -> None:
    """Write README.md of the run and of each existing adapter folder, unless somebody has edited it."""
    _write(folder.path / "README.md", run_card(run, comparison, choice))
    for row in run.results.adapters:
        own = folder.adapters / row.name
        if own.is_dir():
            _write(own / "README.md", adapter_card(run.results, run.recipe, row, choice.best.name))


def _write(path: Path, card: str) -> None:
    """Write a card that ends with its own digest, unless there is one that has been edited."""
    if not path.exists() or _is_unedited(path):
        files.write_text(path, card + _mark(card))


def _is_unedited(path: Path) -> bool:
    """Whether a card is as it was written."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    card = text[: text.rfind(MARK)]
    return text == card + _mark(card)


def _mark(card: str) -> str:
    return f"{MARK} SHA-256 {hashlib.sha256(card.encode()).hexdigest()} -->\n"


def adapter_card(results: Results, recipe: Recipe, row: AdapterResult, recommended: str) -> str:
    """The model card of one adapter.

    Args:
        results: the run's results.
        recipe: the run's recipe.
        row: the adapter.
        recommended: name of the adapter that the run recommends.
    """
    split, found = ("test", row.test) if row.test else ("validation", row.validation)
    classes = class_figures("", found.classes, MOST_CLASSES)
    base, packaged = hub_base(results.base), results.base == PACKAGED
    source = f"find({json.dumps(PACKAGED)}).folder" if packaged else json.dumps(base or "BASE")
    return _render(
        "adapter.md.jinja",
        metadata=_Markdown(_metadata(results, recipe, row)),
        results=results,
        recipe=recipe,
        row=row,
        recommended=recommended,
        data=_data_name(recipe),
        figures=_Markdown(_figures(results, row).markdown()),
        split=split,
        classes=_Markdown(classes.markdown()),
        classes_note=classes.note,
        base=base,
        packaged=packaged,
        source=_Markdown(source),
        settings=_Markdown(_settings(recipe, row)),
    )


def shared_card(card: str, repository: str) -> str:
    """The card of an adapter folder, for a repository on the Hub: its examples load the repository."""
    fetched = f'hf_hub_download("{repository}", "classifier.json")'
    changes = {
        ", where `FOLDER` is the folder of this file": "",
        "import json\n\nfrom peft": "import json\n\nfrom huggingface_hub import hf_hub_download\nfrom peft",
        '"FOLDER/classifier.json"': fetched,
        "FOLDER": repository,
    }
    for before, after in changes.items():
        card = card.replace(before, after)
    return card


def hub_card(
    repository: str,
    *,
    labels: Sequence[str],
    base: str,
    rank: int,
    max_length: int,
    merged: bool,
    several: bool = False,
    pair: Sequence[str] = (),
    run: tuple[Run, AdapterResult] | None = None,
) -> str:
    """The card of a merged model, or of an adapter that has none.

    Args:
        repository: OWNER/NAME on the Hub.
        labels: label names, in the order of the outputs.
        base: name of the base model.
        rank: rank of the adapter.
        max_length: tokens at which texts are truncated.
        merged: whether this is a whole model with the adapter merged into it.
        several: whether a text may have any number of labels.
        pair: what the texts of a pair are called; empty for single texts.
        run: the run of the adapter, and its results.
    """
    library = "transformers" if merged else "peft"
    metadata = _front_matter(hub_base(base), library)
    if run is not None:
        metadata = _metadata(run[0].results, run[0].recipe, run[1], library)
    return _render(
        "hub.md.jinja",
        metadata=_Markdown(metadata),
        repository=repository,
        place=_Markdown(repository),
        labels=labels,
        base=hub_base(base),
        rank=rank,
        max_length=max_length,
        merged=merged,
        several=several,
        pair=pair,
        version=version("rankwise"),
        figures=_Markdown(_figures(run[0].results, run[1]).markdown()) if run else "",
    )


def run_card(run: Run, comparison: Comparison, choice: Chosen) -> str:
    """README.md of a run folder: verdict, table, list of files, and the command that repeats the run."""
    ranks, samples = rank_table(run), sample_table(run, adapter=choice.best.name)
    return _render(
        "run.md.jinja",
        name=run.name,
        verdict=comparison.verdict,
        results=run.results,
        data=_data_name(run.recipe),
        ranks=_Markdown(ranks.markdown()),
        note=_Markdown(ranks.note),
        best=choice.best.name,
        rank=choice.rank,
        why=choice.why(comparison),
        predict=_Markdown(one_line(command("predict", f"adapters/{choice.best.name}", "some text"))),
        samples_title=samples.title,
        samples=_Markdown(samples.markdown()),
        tuned=run.results.tuning is not None,
        numbered=png_names(run.results.labels) is not None,
        again=_Markdown(repeat_command(run)),
    )


class _Markdown(str):
    """Text that is already Markdown or code. Templates escape all other values."""


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # autoescaping is for HTML
        finalize=lambda value: value if isinstance(value, _Markdown) else escape(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def predict_commands(run: Run, choice: Chosen) -> str:
    """Commands that label texts with the recommended adapter, relative to the run's parent folder."""
    adapter = f"{_from_parent(run)}/adapters/{choice.best.name}"
    return "\n".join(
        [
            command("predict", adapter, "some text"),
            command("predict", adapter, "--input", "texts.csv", "--output", "labeled.csv"),
        ]
    )


def _from_parent(run: Run) -> str:
    """The run folder as an argument of a command, which must not look like an option."""
    name = one_line(run.name)
    return f"./{name}" if name.startswith("-") else name


def repeat_command(run: Run) -> str:
    """The command that repeats a run, relative to the run's parent folder."""
    name = _from_parent(run)
    return command("sweep", "--recipe", f"{name}/recipe.toml", "--out", f"{name}-again")


def hub_base(name: str) -> str | None:
    """The Hub name of a base; None for a local folder."""
    found = HUB_NAMES.get(name, name)
    return found if _HUB_ID.fullmatch(found) and not Path(name).exists() else None


def _hub_data(recipe: Recipe) -> str | None:
    """The Hub name of the data; None for local files."""
    data = recipe.data.name
    return data if _HUB_ID.fullmatch(data) and not Path(data).suffix and not Path(data).exists() else None


def _data_name(recipe: Recipe) -> str:
    """The display name of the data: its Hub name, or the name of the file or folder."""
    return one_line(_hub_data(recipe) or Path(recipe.data.name).name or recipe.data.name)


def _metadata(results: Results, recipe: Recipe, row: AdapterResult, library: str = "peft") -> str:
    """The YAML front matter of an adapter, or of the model that it was merged into."""
    data = _hub_data(recipe)
    return _front_matter(
        hub_base(results.base),
        library,
        datasets=[data] if data else None,
        model_name=f"{slug(_data_name(recipe))}-{row.name}",
        eval_results=[each for split in splits(results) for each in _eval_results(recipe, row, split)],
    )


def _front_matter(base: str | None, library: str, **more: Any) -> str:
    """YAML, with names quoted as needed."""
    from huggingface_hub.repocard_data import ModelCardData

    card = ModelCardData(
        base_model=base,
        library_name=library,
        pipeline_tag="text-classification",
        tags=["lora", "rankwise", "text-classification"],
        license="other",
        **more,
    )
    return re.sub(r"^license: other$", LICENSE, card.to_yaml(), count=1, flags=re.MULTILINE).strip()


def _eval_results(recipe: Recipe, row: AdapterResult, split: str) -> list[Any]:
    from huggingface_hub.repocard_data import EvalResult

    found = metrics_of(row, split)
    if found is None:
        return []
    named = {
        ("accuracy", "Accuracy"): found.accuracy,
        ("f1", "Macro F1"): found.macro_f1,
        ("log_loss", "Log loss"): found.log_loss,
    }
    kind = re.sub(r"[^\w.-]+", "-", _data_name(recipe).lower()).strip("-") or "texts"
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=_hub_data(recipe) or kind,
            dataset_name=_data_name(recipe),
            dataset_config=recipe.data.data_config,
            dataset_split=split,
            metric_type=kind_of_metric,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for (kind_of_metric, name), value in named.items()
        if value is not None
    ]


def _figures(results: Results, row: AdapterResult) -> Table:
    rows = []
    for split in splits(results):
        found = metrics_of(row, split)
        if found:
            rows.append(
                (
                    split,
                    f"{found.texts:,}",
                    percent(found.accuracy),
                    f"{100 * found.accuracy_low:.1f}-{100 * found.accuracy_high:.1f}",
                    percent(found.macro_f1),
                )
            )
    return Table("", ("split", "texts", "accuracy", "95 %", "macro-F1"), rows)


def _settings(recipe: Recipe, row: AdapterResult) -> str:
    """The recipe with the adapter's own settings, without those of this machine or of other adapters."""
    own = {name: value for name, value in row.settings.items() if name in Recipe.settings()}
    hidden: dict[str, Any] = {
        "base": True,
        "data": {"source", "validation", "test", "labels"},
        "lora": {"ranks"},
        "train": {"seeds"},
        "machine": {"device", "memory_gb"},
    }
    values = recipe.replace(**own).model_dump(mode="json", exclude_none=True, exclude=hidden)
    # A name with backticks must not end the code block.
    return tomli_w.dumps(values).replace("```", "'''")
