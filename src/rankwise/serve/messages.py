"""Requests and responses of the API. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rankwise.schema import TaskName
from rankwise.serve import limits

EXAMPLE = "it broke on the second day"
Text = Annotated[str, Field(min_length=1, max_length=limits.CHARACTERS)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=limits.TEXTS)]
Pair = Annotated[list[Text], Field(min_length=2, max_length=2)]
TextsOrPairs = Annotated[list[Text | Pair], Field(min_length=1, max_length=limits.TEXTS)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Rank = Annotated[int, Field(ge=0, le=4096)]


def _request(*examples: dict[str, Any]) -> ConfigDict:
    return ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"examples": list(examples)},
    )


class PredictRequest(BaseModel):
    """Texts to classify, and by what."""

    model_config = _request(
        {"texts": EXAMPLE},
        {"texts": [EXAMPLE, "just right"], "adapters": "all", "top_k": 2},
        {"texts": [EXAMPLE], "ranks": 4, "abstain_below": 0.8},
    )

    texts: Annotated[
        Text | TextsOrPairs,
        Field(description="One text, a list of texts, or a list of pairs for adapters that take pairs."),
    ]
    adapters: Annotated[
        Name | Annotated[list[Name], Field(min_length=1, max_length=limits.NAMES)] | None,
        Field(description="An adapter, several, or `all`. Default: the server's default adapter."),
    ] = None
    ranks: Annotated[
        Rank | Annotated[list[Rank], Field(min_length=1, max_length=limits.NAMES)] | None,
        Field(description="A rank, or several. The probabilities of a rank's seeds are averaged."),
    ] = None
    top_k: Annotated[
        int | None,
        Field(ge=1, le=65_536, description="Number of labels to list. Default: every label."),
    ] = None
    probabilities: Annotated[bool, Field(description="Whether to list the labels' probabilities.")] = True
    abstain_below: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Give no label if its probability is below this. Default: the server's threshold.",
        ),
    ] = None


class LabelProbability(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class Answer(BaseModel):
    """What one adapter, or one rank, says of one text."""

    adapter: str
    label: Annotated[
        str | None,
        Field(description="The most probable label; null if it abstains, and if it gives `labels`."),
    ]
    labels: Annotated[
        list[str] | None, Field(description="All labels of the text, from a multi-label adapter; else null.")
    ] = None
    probability: Annotated[float, Field(description="Probability of the most probable label.")]
    probabilities: Annotated[
        list[LabelProbability] | None, Field(description="The most probable labels first.")
    ]


class Prediction(BaseModel):
    """The answers for one text, in the order of the adapters."""

    answers: list[Answer]


class PredictResponse(BaseModel):
    """A prediction for each text, in the order of the texts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "predictions": [
                        {
                            "answers": [
                                {
                                    "adapter": "r4-s110",
                                    "label": "complaint",
                                    "labels": None,
                                    "probability": 0.93,
                                    "probabilities": [
                                        {"label": "complaint", "probability": 0.93},
                                        {"label": "praise", "probability": 0.07},
                                    ],
                                }
                            ]
                        }
                    ],
                    "base": "smollm2-135m",
                    "tokens": 6,
                }
            ]
        }
    )

    predictions: list[Prediction]
    base: str
    tokens: Annotated[int, Field(description="Tokens computed, of all texts and adapters.")]


class ExplainRequest(BaseModel):
    """A text to explain."""

    model_config = _request({"text": EXAMPLE})

    text: Text
    adapter: Annotated[Name | None, Field(description="Default: the server's default adapter.")] = None


class ExplainedWord(BaseModel):
    """A word, and how much of the label's probability is lost without it."""

    text: str
    start: Annotated[int, Field(description="Offset of its first character, in Unicode code points.")]
    effect: float


class ExplainResponse(BaseModel):
    """The label of a text, and the effect of each of its words."""

    adapter: str
    label: str
    probability: float
    words: list[ExplainedWord]


class AdapterInfo(BaseModel):
    """An adapter in service."""

    name: str
    rank: Annotated[int, Field(description="0: a linear probe.")]
    seed: int
    labels: list[str]
    text_columns: Annotated[
        list[str] | None, Field(description="What the texts of a pair are called; null for single texts.")
    ]
    task: Annotated[TaskName, Field(description="Whether a text has one label or any number.")]
    thresholds: Annotated[
        list[float] | None,
        Field(description="Probabilities from which a multi-label adapter gives each label; else null."),
    ]
    label_separator: Annotated[
        str | None, Field(description="Joins the labels of a multi-label adapter in a cell; else null.")
    ]
    max_length: Annotated[int, Field(description="Tokens; longer texts are truncated.")]
    run: Annotated[str | None, Field(description="Name of its run.")]
    report: Annotated[str | None, Field(description="Path of the run's report on this server.")]


class AdaptersResponse(BaseModel):
    """Every adapter in service."""

    base: str
    default: Annotated[str, Field(description="The adapter that answers if a request names none.")]
    adapters: list[AdapterInfo]


class ReloadResponse(BaseModel):
    """What a reload changed, by adapter name."""

    added: list[str]
    replaced: list[str]
    removed: list[str]
    failed: Annotated[
        dict[str, str],
        Field(description="Adapters that cannot be used, with the reason. The old ones stay in service."),
    ]
    notes: Annotated[list[str], Field(description="What to know about the adapters that were read.")]


class ClassifyRequest(BaseModel):
    """The request of vLLM's `POST /classify`."""

    model_config = _request({"model": "r4-s110", "input": [EXAMPLE]})

    input: Text | Texts
    model: Annotated[Name | None, Field(description="An adapter. Default: the server's default adapter.")] = (
        None
    )
    user: Annotated[str | None, Field(description="Ignored.")] = None
    priority: Annotated[int, Field(description="Ignored.")] = 0
    truncate_prompt_tokens: Annotated[
        int | None, Field(description="Ignored: texts are truncated as in training.")
    ] = None
    add_special_tokens: Annotated[bool, Field(description="Ignored: as in training.")] = True
    use_activation: Annotated[bool | None, Field(description="False: logits instead of probabilities.")] = (
        None
    )


class ClassifiedText(BaseModel):
    """The label of one text."""

    index: int
    label: str
    probs: Annotated[list[float], Field(description="In the order of the adapter's labels.")]
    num_classes: int


class ClassifyUsage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyResponse(BaseModel):
    """The response of vLLM's `POST /classify`."""

    id: str
    object: Literal["list"] = "list"
    created: Annotated[int, Field(description="Unix time.")]
    model: str
    data: list[ClassifiedText]
    usage: ClassifyUsage


class TeiRequest(BaseModel):
    """The request of Text Embeddings Inference's `POST /predict`. The default adapter answers."""

    model_config = _request({"inputs": EXAMPLE}, {"inputs": [[EXAMPLE], ["just right"]]})

    inputs: Annotated[
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=1)]
        | Annotated[
            list[Annotated[list[Text], Field(min_length=1, max_length=1)]],
            Field(min_length=1, max_length=limits.TEXTS),
        ],
        Field(description="One text, or a list of lists of one text each. Pairs are not supported."),
    ]
    raw_scores: Annotated[bool, Field(description="Logits instead of probabilities.")] = False
    truncate: Annotated[
        bool | None, Field(description="False: refuse texts that are too long instead of truncating them.")
    ] = None
    truncation_direction: Annotated[
        Literal["left", "right", "Left", "Right"] | None, Field(description="Ignored: as in training.")
    ] = None


class TeiScore(BaseModel):
    """A label and its score."""

    score: float
    label: str


class ErrorBody(BaseModel):
    """The parts of an error."""

    code: str
    message: str
    hint: str


class ErrorResponse(BaseModel):
    """An error."""

    error: ErrorBody
