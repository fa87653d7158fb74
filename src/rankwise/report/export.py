"""Misclassified texts for annotation tools: records of Argilla, tasks of Label Studio.

Argilla 2 reads the records with `dataset.records.from_json`; each has the text, a suggestion, and metadata.
Label Studio imports the tasks; each has the text, a pre-annotation, and the fields of errors.csv. Its
labeling interface is a separate XML file. The guide names the versions that these formats were checked with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from rankwise.report.errors import WrongText
from rankwise.report.tables import printable
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Task

AGENT = "rankwise"
"""Who suggests the labels."""


def argilla_records(found: Sequence[WrongText], task: Task = SINGLE) -> str:
    """JSON for Argilla: field `text`, question `label` with the predicted labels as suggestion."""
    records = [
        {
            "id": f"{each.split}-{each.number}",
            "fields": {"text": each.text},
            "metadata": _fields(each),
            "suggestions": {
                "label": {
                    "value": _choices(each, task) if task.several else each.predicted,
                    "score": round(each.confidence, 4),
                    "agent": AGENT,
                }
            },
            "responses": {},
            "vectors": {},
        }
        for each in found
    ]
    return _json(records)


def label_studio_tasks(found: Sequence[WrongText], task: Task = SINGLE) -> str:
    """JSON for Label Studio: the predicted label as pre-annotation of the control `label`."""
    tasks: list[dict[str, Any]] = [
        {
            "data": {"text": each.text, **_fields(each)},
            "predictions": [
                {
                    "model_version": AGENT,
                    "score": round(each.confidence, 4),
                    "result": [
                        {
                            "id": "1",
                            "from_name": "label",
                            "to_name": "text",
                            "type": "choices",
                            "value": {"choices": _choices(each, task)},
                        }
                    ],
                }
            ],
        }
        for each in found
    ]
    return _json(tasks)


def label_studio_config(labels: Sequence[str], task: Task = SINGLE) -> str:
    """The labeling interface of Label Studio: the text, the label that it has, and a choice of labels."""
    choices = "".join(f"    <Choice value={quoteattr(printable(label))}/>\n" for label in labels)
    return (
        "<View>\n"
        '  <Text name="text" value="$text"/>\n'
        '  <Header size="6" value="Label in the data"/>\n'
        '  <Header size="5" value="$given_label"/>\n'
        f'  <Choices name="label" toName="text" choice="{"multiple" if task.several else "single"}" '
        'showInLine="true">\n'
        f"{choices}"
        "  </Choices>\n"
        "</View>\n"
    )


def _choices(found: WrongText, task: Task) -> list[str]:
    """The predicted labels."""
    if not task.several:
        return [found.predicted]
    return found.predicted.split(task.separator) if found.predicted else []


def _fields(found: WrongText) -> dict[str, Any]:
    """What errors.csv says about a text, by names that both tools accept."""
    fields: dict[str, Any] = {
        "split": found.split,
        "number": found.number,
        "source": found.source,
        "given_label": found.label,
        "adapters_wrong": round(found.wrong, 4),
    }
    if found.label_probability is not None:
        fields["given_label_probability"] = round(found.label_probability, 4)
    return fields


def _json(value: Sequence[Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
