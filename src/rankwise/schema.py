"""Schemas of the JSON files that rankwise writes.

results.json contains `Results`, timing.json `Timing`, data.json `DataReport`, search.json `SearchResults`.
merged.json holds a list of `MergedRun`. `rankwise compare --json` prints a `Comparison`, `rankwise cut
--json` a `Cut`, `rankwise runs --json` a list of `RunSummary`. results.json and search.json are
byte-identical whenever the same recipe runs on the same machine. Values that vary between runs, such as wall
times, are in timing.json.

Proportions, probabilities, accuracies and F1 scores are fractions from 0 to 1.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

SCHEMA = 3
"""Version of results.json, timing.json and search.json. Run folders with another version are rejected."""


class Versioned(BaseModel):
    """Fields common to all versions of results.json and timing.json."""

    schema_version: int


TaskName = Literal["single-label", "multi-label"]
"""What labels a text has: exactly one, or any number."""
MetricName = Literal["accuracy", "log-loss", "macro-f1"]
"""What ranks are compared by."""


class ClassMetrics(BaseModel):
    """Metrics of one class; fractions from 0 to 1."""

    label: str
    precision: float  # 0 if the class was never predicted
    recall: float  # 0 if the class has no texts
    f1: float
    texts: int  # number of texts with this label
    threshold: float | None = (
        None  # probability from which a multi-label classifier gives it; null for others
    )


class Bin(BaseModel):
    """Texts whose predicted label has a probability in (`low`, `high`]; fractions from 0 to 1."""

    low: float
    high: float
    texts: int
    confidence: float  # mean probability of the predicted labels
    accuracy: float


class Abstaining(BaseModel):
    """A classifier that gives no label if its probability is below a threshold; fractions from 0 to 1."""

    below: float  # the threshold
    answered: int  # number of texts with a label
    coverage: float  # share of texts with a label
    accuracy: float | None  # of the labels given; null, like the next two, if there are none
    accuracy_low: float | None  # 95 % interval over texts
    accuracy_high: float | None


class Metrics(BaseModel):
    """Metrics of a classifier on one split; fractions from 0 to 1."""

    split: str
    texts: int
    accuracy: float
    accuracy_low: float  # 95 % interval over texts
    accuracy_high: float
    macro_f1: float
    micro_f1: float | None = None  # null for single-label classification, where it is the accuracy
    log_loss: float | None  # nats per text; null, like `ece`, for a classifier without probabilities
    ece: float | None  # expected calibration error
    reliability: list[Bin]  # non-empty bins only; empty, like the confusion matrix, for multi-label
    classes: list[ClassMetrics]
    confusion: list[list[int]]  # rows: true labels; columns: predicted labels; empty above 100 classes
    confusion_cells: list[tuple[int, int, int]] = []  # above 100 classes: true, predicted, texts; no zeros
    abstaining: Abstaining | None = None  # null unless a threshold was given

    @property
    def is_multi_label(self) -> bool:
        """Whether texts have any number of labels. There is then no confusion matrix."""
        return self.micro_f1 is not None

    def score(self, metric: MetricName) -> float:
        """The value of a metric, negated if lower is better. Needs probabilities for the log loss."""
        values = {"accuracy": self.accuracy, "macro-f1": self.macro_f1}
        return values.get(metric, -(self.log_loss or 0.0))

    def cells(self) -> list[tuple[int, int, int]]:
        """The non-zero cells of the confusion matrix: true label, predicted label (from 0), texts."""
        rows = enumerate(self.confusion)
        return self.confusion_cells or [(i, j, n) for i, row in rows for j, n in enumerate(row) if n]


class AdapterResult(BaseModel):
    """One trained adapter, in results.json."""

    name: str  # folder name under adapters/
    rank: int  # 0: a linear probe
    seed: int
    alpha: float  # PEFT's lora_alpha
    scale: float  # factor on the low-rank product; 0 for rank 0
    settings: dict[str, Any] = {}  # settings that may differ between adapters, by name in the recipe
    trainable_params: int
    total_params: int
    trainable_percent: float  # from 0 to 100
    merged_params: int  # parameters of the classifier after merging the adapter
    bank: int  # index of the bank that trained it, from 1
    adapter_bytes: int  # size of adapter_model.safetensors
    train_loss: float  # mean over all steps, nats per text
    kept_epoch: int  # from 1
    temperature: float | None = None  # stored with the adapter; its metrics here are without it
    validation: Metrics
    test: Metrics | None  # null without a test split


class Baseline(BaseModel):
    """A baseline, in results.json: a classifier that uses none of the compared ranks."""

    name: str  # such as "majority class"
    validation: Metrics
    test: Metrics | None  # null without a test split


class CutResult(BaseModel):
    """An adapter of the largest rank, cut to a smaller rank after training, in results.json."""

    name: str  # name of the adapter and new rank, such as "r16-s110-cut4"
    from_rank: int
    rank: int  # the new rank
    seed: int
    kept: float  # share of the update's squared Frobenius norm that the cut keeps
    validation: Metrics
    test: Metrics | None  # null without a test split


class Diverged(BaseModel):
    """An adapter that was dropped because its loss, gradient or weights became non-finite."""

    name: str  # such as "r16-s110"
    rank: int
    seed: int
    step: int  # optimizer step at which this was detected, from 1
    reason: str  # the non-finite quantity


class Trial(BaseModel):
    """An adapter that is trained to choose a rank's settings, and scored on the tuning texts."""

    name: str  # such as "tune1-r4-lr3e-3"
    rank: int
    rung: int  # 1: a short schedule; 2: the full schedule, for the best settings of rung 1
    settings: dict[str, Any]  # the settings that vary, by name in the recipe, such as learning_rate
    epochs: float  # length of its schedule, in passes over the texts that trials train on
    log_loss: float | None  # on the tuning texts, nats per text; null if it diverged
    log_loss_error: float | None = None  # its standard error over the tuning texts
    accuracy: float | None  # on the tuning texts, a fraction; null if it diverged
    macro_f1: float | None = None  # on the tuning texts, a fraction; null if it diverged
    metric: MetricName = "log-loss"  # what trials are compared by
    metric_error: float | None = None  # standard error of another metric than the log loss
    diverged: int | None = None  # the optimizer step at which it became non-finite, from 1
    added: bool = False  # added to bracket the best learning rate of the rung

    @property
    def loss(self) -> float | None:
        """What the trials of a rank are ordered by, lower is better; None if it diverged."""
        values = {"accuracy": self.accuracy, "macro-f1": self.macro_f1}
        if self.metric == "log-loss":
            return self.log_loss
        value = values[self.metric]
        return None if value is None else 1 - value

    @property
    def loss_error(self) -> float | None:
        """Its standard error over the tuning texts."""
        return self.log_loss_error if self.metric == "log-loss" else self.metric_error


class TunedRank(BaseModel):
    """The settings that a rank's final adapters use."""

    rank: int
    trial: str  # name of the trial with these settings, among those with the longest schedule
    settings: dict[str, Any]  # by name in the recipe
    at_edge: bool  # whether the best learning rate is not bracketed by rates that are worse


class Tuning(BaseModel):
    """How the settings of each rank were chosen, in results.json."""

    texts: int  # tuning texts, taken from train; trials do not train on them
    train_texts: int  # texts that trials train on
    seed: int  # of every trial
    metric: MetricName = "log-loss"  # what they were chosen by
    varied: list[str]  # names of the settings that vary
    trials: list[Trial]
    chosen: list[TunedRank]  # one for each rank, ascending


class Results(BaseModel):
    """results.json: the results of a sweep. The same recipe on the same machine gives the same bytes."""

    schema_version: int = SCHEMA
    rankwise: str  # version of rankwise
    base: str  # base model, as the recipe names it
    task: TaskName = "single-label"
    labels: list[str]  # in the model's order
    texts: dict[str, int]  # split -> number of texts
    notes: list[str]  # notes about the data
    device: str
    precision: str  # bfloat16 or float32
    threads: int  # torch threads
    versions: dict[str, str]  # package -> version
    windowed: dict[str, int] = {}  # split -> texts read in several windows, if there are any
    fingerprint: dict[str, str] = {}  # split or "base" -> SHA-256 of its content
    adapters: list[AdapterResult]
    baselines: list[Baseline] = []
    cuts: list[CutResult] = []  # by seed, then rank; empty if the recipe turns them off
    diverged: list[Diverged] = []
    tuning: Tuning | None = None  # null if every rank used the recipe's settings


class Timing(BaseModel):
    """timing.json: values that vary between runs of a recipe. Times are wall seconds."""

    schema_version: int = SCHEMA
    created: str  # when the run ended: ISO 8601, UTC
    seconds: dict[str, float]  # stage -> wall seconds
    train_seconds: dict[str, float]  # adapter -> its bank's time without validation / adapters in the bank
    tokens_per_second: float  # training tokens of all adapters / training seconds


class SearchTrial(BaseModel):
    """Settings that a search has tried, in search.json."""

    name: str  # such as "r4-lr3e-3"
    rank: int
    settings: dict[str, Any]  # the other settings that the search chooses, by name in the recipe
    share: float  # length of the longest schedule that it completed, as a share of the full one; 0 if none
    log_loss: float | None  # on validation, after that schedule; nats per text; null if there is none
    accuracy: float | None  # on validation, after that schedule
    log_losses: list[float | None]  # after each schedule that it started, shortest first; null: diverged
    end: Literal["finished", "stopped", "diverged"]  # stopped: not among those to go on
    diverged: int | None = None  # the step of its last schedule at which it became non-finite, from 1


class Importance(BaseModel):
    """How much a setting mattered in a search."""

    setting: str  # name in the recipe, or "rank"
    share: float  # share of the variance of the log loss that the setting explains by itself


class SearchResults(BaseModel):
    """search.json: the results of a search. The same command on the same machine gives the same bytes."""

    schema_version: int = SCHEMA
    rankwise: str  # version of rankwise
    base: str  # base model, as the recipe names it
    task: TaskName = "single-label"
    data: str  # data, as the recipe names it
    labels: list[str]  # in the model's order
    texts: dict[str, int]  # split -> number of texts
    notes: list[str]  # notes about the data
    device: str
    precision: str  # bfloat16 or float32
    threads: int  # torch threads
    versions: dict[str, str]  # package -> version
    fingerprint: dict[str, str]  # split or "base" -> SHA-256 of its content
    seed: int  # of the draws and of every trial
    draws: int | None  # number of random draws asked for; null: every combination was tried
    places: int  # number of adapters that trained at once
    shares: list[float]  # lengths of the schedules, as shares of the full one, ascending
    steps: int  # of the full schedule of the recipe
    searched: list[str]  # names of the settings that differ between trials
    trials: list[SearchTrial]  # best first
    importances: list[Importance]  # most important first
    best: str  # name of the trial with the lowest log loss on the full schedule, and of its adapter
    command: str  # the sweep that trains an adapter with these settings
    validation: Metrics  # of the best; optimistic, because it was chosen by this split
    test: Metrics | None  # of the best; null without a test split


class Cut(BaseModel):
    """An adapter folder that `rankwise cut` wrote. Shares are fractions from 0 to 1."""

    folder: str
    from_rank: int
    rank: int  # the new rank
    params: int  # number of its parameters, including the score head
    adapter_bytes: int  # size of adapter_model.safetensors
    kept: float  # share of the update's squared Frobenius norm that the cut keeps
    kept_by_module: dict[str, float]  # the same share for each target module


class MergedRun(BaseModel):
    """A run that is part of a merged one: an entry of merged.json."""

    folder: str
    adapters: list[str]  # names, sorted


class RankSummary(BaseModel):
    """One rank over its seeds, on the validation split; accuracies are fractions."""

    rank: int
    seeds: int
    mean: float  # of the comparison's metric, over seeds, in its unit
    low: float  # 95 % interval, over texts and, if there are several, over seeds
    high: float
    spread: float | None  # standard deviation over seeds; null for one seed
    accuracy: float  # mean over seeds, whatever the metric; so are the next three
    accuracy_low: float  # 95 % interval, over texts and, if there are several, over seeds
    accuracy_high: float
    accuracy_spread: float | None  # standard deviation over seeds; null for one seed


class PairSummary(BaseModel):
    """Two ranks on the same validation texts and seeds, in the metric's unit."""

    rank: int
    other: int
    difference: float  # metric of `rank` minus that of `other`
    low: float  # simultaneous 95 % interval: joint coverage over all pairs
    high: float
    p: float  # two-sided, of no difference; adjusted for the number of pairs, like the interval
    mcnemar: list[float]  # exact p within each seed, of right and wrong labels, whatever the metric


class BaselineSummary(BaseModel):
    """The recommended rank, or the leader, and a baseline on the same validation texts."""

    rank: int
    baseline: str
    difference: float  # metric of the rank minus that of the baseline, in the metric's unit
    low: float  # simultaneous 95 % interval
    high: float
    p: float  # two-sided, of no difference; adjusted like the interval


class CurvePoint(BaseModel):
    """The verdict at one margin."""

    margin: float  # in the metric's unit
    enough: int | None  # as in `Comparison`


class Comparison(BaseModel):
    """Comparison of a run's ranks on the validation split. The test split is never used."""

    metric: MetricName = "accuracy"
    unit: Literal["fraction", "nats"] = "fraction"  # of means, differences, intervals and margins
    lower_is_better: bool = False  # true for the log loss
    margin: float  # accepted loss, above 0
    seeds: list[int]
    ranks: list[RankSummary]
    pairs: list[PairSummary]
    baselines: list[BaselineSummary]
    best: int  # rank with the best mean, ties to the smallest; not a significance claim
    enough: int | None  # smallest rank shown to be enough, or the best; null if the data are inconclusive
    recommended: int  # `enough`; if that is null, the smallest rank not shown to be worse than `best`
    curve: list[CurvePoint]  # the verdict at other margins, ascending; empty for a single rank
    headline: str
    verdict: str

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one rank to choose from; the linear probe, rank 0, is a baseline."""
        return sum(each.rank > 0 for each in self.ranks) > 1


class RunSummary(BaseModel):
    """One run in a list; unknown values are null."""

    name: str  # folder name
    state: str  # finished, unfinished, damaged, or "other version" (of the schema)
    created: str | None  # end time: ISO 8601, UTC
    base: str | None
    data: str | None
    ranks: list[int]
    seeds: list[int]
    accuracy: float | None  # mean validation accuracy of the recommended rank, a fraction
    verdict: str | None  # short form
    problem: str | None  # why it cannot be read


class ClassCount(BaseModel):
    """Number of texts of one class in a split."""

    label: str
    texts: int


class SplitReport(BaseModel):
    """One split. Lengths are in the report's unit, before truncation."""

    name: str
    texts: int
    classes: list[ClassCount]
    tokens_mean: float
    tokens_p50: int
    tokens_p95: int
    tokens_max: int
    truncated: int | None  # texts of which only a part is read; null if lengths are in words
    windowed: int | None = None  # texts read in several windows; null if long texts are cut, or in words
    duplicates: int  # texts identical to an earlier text of the split
    duplicates_normalized: int  # the same, ignoring case, whitespace and Unicode form


class SourceReport(BaseModel):
    """A file, or a split of a dataset, and what was read of it."""

    name: str  # file name, or dataset and split
    split: str  # train, validation or test; empty for a file that an adapter is evaluated on
    texts: int  # number of texts read for this split
    text_column: str | None  # null, like `label_column`, for lines of text
    label_column: str | None
    unused_columns: list[str]


class Contradiction(BaseModel):
    """A text with conflicting labels, within or across splits."""

    text: str  # its first occurrence
    labels: list[str]  # in the model's order
    splits: list[str]


class Leak(BaseModel):
    """Texts of one split that also occur in another split."""

    splits: list[str]  # the pair of splits
    texts: int  # texts of the second split that also occur in the first
    same_label: int  # of these, texts whose label matches one of theirs in the first split
    other_label: int  # of these, texts whose label matches none of theirs in the first split
    examples: list[str]


class DataReport(BaseModel):
    """data.json. Texts that differ only in case, whitespace or Unicode form count as the same."""

    unit: Literal["tokens", "words"]  # unit of the lengths
    max_length: int  # tokens
    sources: list[SourceReport] = []
    splits: list[SplitReport]
    contradictions: list[Contradiction]  # at most 100
    contradictions_total: int
    leaks: list[Leak]  # only pairs of splits with a leak


class Export(BaseModel):
    """An exported adapter, and how it was verified."""

    folder: str
    to: Literal["merged", "onnx", "peft"]
    int8: bool
    file_bytes: dict[str, int]  # file, relative to the folder -> size
    library: str  # the library that ran the export, with its version
    texts: int  # number of texts that it was run on
    texts_from: str
    largest_difference: float  # of a logit, from the adapter's in float32
    labels_changed: int  # texts with another label than the adapter's
    accuracy: float | None  # of the adapter; null, like the next, where fewer than 200 texts have labels
    exported_accuracy: float | None
    loss: float  # points of accuracy lost, or percent of labels changed where the accuracy is unknown


class Push(BaseModel):
    """What was pushed to the Hub, or would be."""

    repository: str
    revision: str  # branch
    file_bytes: dict[str, int]  # file -> size
    private: bool  # of a new repository
    created: bool | None  # whether the repository is new; null, like `url`, for a dry run
    url: str | None  # of the commit
