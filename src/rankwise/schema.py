"""Every JSON file that rankwise writes, as types.

results.json holds `Results`, timing.json `Timing`, data.json `DataReport`; `rankwise compare --json` prints a
`Comparison`, `rankwise runs --json` a list of `RunSummary`. results.json is the same, byte for byte, whenever
the same recipe is run on the same machine; what differs from run to run, such as seconds, is in timing.json.

Shares, probabilities, accuracies and F1 scores are fractions from 0 to 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

SCHEMA = 2
"""Of results.json and timing.json. Version 1, of rankwise before its first release, is refused."""


class ClassMetrics(BaseModel):
    """How one class fares; fractions from 0 to 1."""

    label: str
    precision: float
    recall: float
    f1: float
    texts: int


class Bin(BaseModel):
    """Texts whose predicted label has a probability above `low`, up to `high`; fractions from 0 to 1."""

    low: float
    high: float
    texts: int
    confidence: float  # mean probability of the predicted labels
    accuracy: float


class Metrics(BaseModel):
    """How a classifier fares on one split; fractions from 0 to 1."""

    split: str
    texts: int
    accuracy: float
    accuracy_low: float  # 95 % interval over texts
    accuracy_high: float
    macro_f1: float
    log_loss: float | None  # nats a text; null, as `ece`, for a classifier without probabilities
    ece: float | None  # expected calibration error
    reliability: list[Bin]  # bins without texts are left out
    classes: list[ClassMetrics]
    confusion: list[list[int]]  # true label down, predicted label across


class AdapterResult(BaseModel):
    """One row of results.json."""

    name: str  # of its folder under adapters/
    rank: int
    seed: int
    alpha: float
    scale: float
    trainable_params: int
    total_params: int
    trainable_percent: float
    merged_params: int
    bank: int  # which pass trained it, from 1
    adapter_bytes: int  # of adapter_model.safetensors
    train_loss: float  # mean over all steps
    kept_epoch: int
    validation: Metrics
    test: Metrics | None


class Baseline(BaseModel):
    """A baseline of results.json: what is reached without the ranks that are compared."""

    name: str  # such as "majority class"
    validation: Metrics
    test: Metrics | None


class Diverged(BaseModel):
    """An adapter that was dropped because its loss, gradient or weights were no longer numbers."""

    name: str
    rank: int
    seed: int
    step: int  # from 1
    reason: str


class Results(BaseModel):
    """results.json."""

    schema_version: int = SCHEMA
    rankwise: str  # version
    base: str
    labels: list[str]
    texts: dict[str, int]  # split -> texts
    notes: list[str]  # what was said about the data
    device: str
    precision: str
    threads: int
    versions: dict[str, str]
    fingerprint: dict[str, str] = {}  # split or "base" -> SHA-256 of what was read
    adapters: list[AdapterResult]
    baselines: list[Baseline] = []
    diverged: list[Diverged] = []


class Timing(BaseModel):
    """timing.json: what differs between two runs of one recipe."""

    created: str  # when the run ended: ISO 8601, UTC
    seconds: dict[str, float]  # stage -> wall seconds
    train_seconds: dict[str, float]  # adapter -> its bank's, validation left out, over the bank's adapters
    tokens_per_second: float  # trained tokens of all adapters, over the training seconds


class RankSummary(BaseModel):
    """One rank over its seeds, on the validation split; fractions."""

    rank: int
    seeds: int
    accuracy: float  # mean over seeds
    accuracy_low: float  # 95 % interval, over texts and, where there are several, over seeds
    accuracy_high: float
    accuracy_spread: float | None  # standard deviation over seeds; null for one seed


class PairSummary(BaseModel):
    """Two ranks on the same validation texts and seeds; fractions."""

    rank: int
    other: int
    difference: float  # accuracy of `rank` minus that of `other`
    low: float  # 95 % interval
    high: float
    p: float  # two-sided; of no difference
    p_holm: float  # adjusted for the number of pairs
    mcnemar: list[float]  # exact p within each seed


class Comparison(BaseModel):
    """What a run's validation texts say of its ranks. The test split is never looked at."""

    margin: float
    seeds: list[int]
    ranks: list[RankSummary]
    pairs: list[PairSummary]
    best: int  # rank of the highest mean accuracy, the smallest among equals
    enough: int | None  # smallest rank shown not to lose more than the margin; null if none below the best
    verdict: str


class RunSummary(BaseModel):
    """One run in a list; what is not known is null."""

    name: str  # of its folder
    state: str  # finished, unfinished or damaged
    created: str | None  # when it ended: ISO 8601, UTC
    base: str | None
    data: str | None
    ranks: list[int]
    seeds: list[int]
    accuracy: float | None  # best mean accuracy of a rank on validation, a fraction
    verdict: str | None  # in a few words
    problem: str | None  # what is damaged


class ClassCount(BaseModel):
    """Texts of one class in a split."""

    label: str
    texts: int


class SplitReport(BaseModel):
    """One split. Lengths are in the report's unit, before anything is cut off."""

    name: str
    texts: int
    classes: list[ClassCount]
    tokens_mean: float
    tokens_p50: int
    tokens_p95: int
    tokens_max: int
    truncated: int | None  # texts longer than max_length; null where lengths are in words
    duplicates: int  # texts that repeat an earlier one of the split to the letter
    duplicates_normalized: int  # the same, but for case, spaces and Unicode form


class Contradiction(BaseModel):
    """A text that carries several labels, in one split or in several."""

    text: str  # as it first stands
    labels: list[str]  # in the model's order
    splits: list[str]


class Leak(BaseModel):
    """Texts of one split that stand in another split too."""

    splits: list[str]  # the two
    texts: int  # of the second split that stand in the first too
    same_label: int  # of these, with a label that they have in the first
    other_label: int  # of these, with none of the labels that they have in the first
    examples: list[str]


class DataReport(BaseModel):
    """data.json. Texts are the same where they differ by case, spaces and Unicode form alone."""

    unit: Literal["tokens", "words"]  # of the lengths
    max_length: int  # tokens
    splits: list[SplitReport]
    contradictions: list[Contradiction]  # the first of them
    contradictions_total: int
    leaks: list[Leak]  # pairs of splits without a leak are left out
