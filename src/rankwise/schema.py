"""Every JSON file that rankwise writes, as types.

results.json holds `Results`, timing.json `Timing`, data.json `DataReport`. `rankwise compare --json` prints a
`Comparison`, `rankwise runs --json` a list of `RunSummary`. results.json is byte-identical whenever the same
recipe runs on the same machine. What differs from run to run, such as seconds, is in timing.json.

Shares, probabilities, accuracies and F1 scores are fractions from 0 to 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

SCHEMA = 2
"""Version of results.json and timing.json. A run folder of another version is refused."""


class Versioned(BaseModel):
    """What every version of results.json and timing.json says of itself."""

    schema_version: int


class ClassMetrics(BaseModel):
    """How well one class is recognized; fractions from 0 to 1."""

    label: str
    precision: float  # share of its predictions that are right; 0 without predictions
    recall: float  # share of its texts that were found; 0 without texts
    f1: float
    texts: int  # of this class


class Bin(BaseModel):
    """Texts whose predicted label has a probability above `low`, up to `high`; fractions from 0 to 1."""

    low: float
    high: float
    texts: int
    confidence: float  # mean probability of the predicted labels
    accuracy: float


class Metrics(BaseModel):
    """How well a classifier does on one split; fractions from 0 to 1."""

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
    """One trained adapter, in results.json."""

    name: str  # of its folder under adapters/
    rank: int  # 0: a linear probe, the score head alone
    seed: int
    alpha: float  # as PEFT counts it
    scale: float  # factor on the low-rank product; 0 for rank 0
    trainable_params: int
    total_params: int
    trainable_percent: float  # from 0 to 100
    merged_params: int  # of the classifier once the adapter is merged
    bank: int  # which pass trained it, from 1
    adapter_bytes: int  # size of adapter_model.safetensors
    train_loss: float  # mean over all steps, nats a text
    kept_epoch: int  # from 1
    validation: Metrics
    test: Metrics | None  # null without a test split


class Baseline(BaseModel):
    """A baseline, in results.json: what is reached without the ranks that are compared."""

    name: str  # such as "majority class"
    validation: Metrics
    test: Metrics | None  # null without a test split


class Diverged(BaseModel):
    """An adapter that was dropped because its loss, gradient or weights were no longer numbers."""

    name: str  # such as "r16-s110"
    rank: int
    seed: int
    step: int  # optimizer step at which it was noticed, from 1
    reason: str  # what was no longer a number


class Results(BaseModel):
    """results.json: what a sweep found. The same recipe on the same machine gives the same bytes."""

    schema_version: int = SCHEMA
    rankwise: str  # version of rankwise
    base: str  # base model, as the recipe names it
    labels: list[str]  # in the model's order
    texts: dict[str, int]  # split -> texts
    notes: list[str]  # what was said about the data
    device: str
    precision: str  # bfloat16 or float32
    threads: int  # of torch
    versions: dict[str, str]  # package -> version
    fingerprint: dict[str, str] = {}  # split or "base" -> SHA-256 of what was read
    adapters: list[AdapterResult]
    baselines: list[Baseline] = []
    diverged: list[Diverged] = []


class Timing(BaseModel):
    """timing.json: what differs between two runs of one recipe. Times are wall seconds."""

    schema_version: int = SCHEMA
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
    low: float  # simultaneous 95 % interval: all pairs' intervals hold the truth together
    high: float
    p: float  # two-sided, of no difference; adjusted for the number of pairs, as the interval is
    mcnemar: list[float]  # exact p within each seed


class BaselineSummary(BaseModel):
    """The recommended rank, or the leader, and a baseline on the same validation texts; fractions."""

    rank: int
    baseline: str
    difference: float  # accuracy of the rank minus that of the baseline
    low: float  # simultaneous 95 % interval
    high: float
    p: float  # two-sided, of no difference; adjusted as the interval is


class Comparison(BaseModel):
    """What a run's validation texts say of its ranks. The test split is never looked at."""

    margin: float
    seeds: list[int]
    ranks: list[RankSummary]
    pairs: list[PairSummary]
    baselines: list[BaselineSummary]
    best: int  # rank of the highest mean accuracy, the smallest among equals; by itself no claim
    enough: int | None  # smallest rank shown to be enough, or the best; null where the data do not decide
    headline: str
    verdict: str


class RunSummary(BaseModel):
    """One run in a list; what is not known is null."""

    name: str  # of its folder
    state: str  # finished, unfinished, damaged, or "other version": of another schema
    created: str | None  # when it ended: ISO 8601, UTC
    base: str | None
    data: str | None
    ranks: list[int]
    seeds: list[int]
    accuracy: float | None  # best mean accuracy of a rank on validation, a fraction
    verdict: str | None  # in a few words
    problem: str | None  # why it cannot be read


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
    duplicates_normalized: int  # the same, ignoring case, spaces and Unicode form


class Contradiction(BaseModel):
    """A text that carries several labels, in one split or in several."""

    text: str  # as it is written first
    labels: list[str]  # in the model's order
    splits: list[str]


class Leak(BaseModel):
    """Texts of one split that are in another split too."""

    splits: list[str]  # the two
    texts: int  # of the second split that are in the first too
    same_label: int  # of these, with a label that they have in the first
    other_label: int  # of these, with none of the labels that they have in the first
    examples: list[str]


class DataReport(BaseModel):
    """data.json. Texts that differ only in case, spaces or Unicode form count as the same."""

    unit: Literal["tokens", "words"]  # of the lengths
    max_length: int  # tokens
    splits: list[SplitReport]
    contradictions: list[Contradiction]  # the first of them
    contradictions_total: int
    leaks: list[Leak]  # pairs of splits without a leak are left out
