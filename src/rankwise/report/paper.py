r"""What a paper needs: the methods in prose, the rank table in LaTeX, and the references that both cite.

The prose is LaTeX with `\cite`, whose keys are those of references.bib. It states what was done, with the
numbers of the run; it claims nothing that the verdict does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rankwise.recipe import Recipe
from rankwise.report.criteria import CRITERIA
from rankwise.report.ranks import shown
from rankwise.report.run import Run
from rankwise.report.scores import Score, ScoreRow, baseline_rows, rank_rows, splits
from rankwise.report.tables import one_line
from rankwise.report.verdict import Chosen
from rankwise.schema import AdapterResult, Comparison
from rankwise.stats.verdict import CLOSE, LEVEL, PASSED_OVER
from rankwise.stats.wording import joined
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
"""Characters with a meaning in LaTeX -> how to write them."""
REFERENCES = r"""@inproceedings{hu2022lora,
  author = {Edward J. Hu and Yelong Shen and Phillip Wallis and Zeyuan Allen-Zhu and Yuanzhi Li and Shean Wang
            and Lu Wang and Weizhu Chen},
  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  booktitle = {International Conference on Learning Representations},
  year = {2022},
}

@inproceedings{loshchilov2019adamw,
  author = {Ilya Loshchilov and Frank Hutter},
  title = {Decoupled Weight Decay Regularization},
  booktitle = {International Conference on Learning Representations},
  year = {2019},
}

@article{wilson1927,
  author = {Edwin B. Wilson},
  title = {Probable Inference, the Law of Succession, and Statistical Inference},
  journal = {Journal of the American Statistical Association},
  volume = {22},
  number = {158},
  pages = {209--212},
  year = {1927},
}

@article{tango1998,
  author = {Toshiro Tango},
  title = {Equivalence Test and Confidence Interval for the Difference in Proportions for the Paired-Sample
           Design},
  journal = {Statistics in Medicine},
  volume = {17},
  number = {8},
  pages = {891--908},
  year = {1998},
}

@article{hillis2007,
  author = {Stephen L. Hillis},
  title = {A Comparison of Denominator Degrees of Freedom Methods for Multiple Observer {ROC} Analysis},
  journal = {Statistics in Medicine},
  volume = {26},
  number = {3},
  pages = {596--619},
  year = {2007},
}

@article{banerjee1960,
  author = {Saibal Kumar Banerjee},
  title = {Approximate Confidence Interval for Linear Functions of Means of k Populations When the Population
           Variances Are Not Equal},
  journal = {Sankhya},
  volume = {22},
  pages = {357--358},
  year = {1960},
}

@article{dorfman1992,
  author = {Donald D. Dorfman and Kevin S. Berbaum and Charles E. Metz},
  title = {Receiver Operating Characteristic Rating Analysis: Generalization to the Population of Readers and
           Patients with the Jackknife Method},
  journal = {Investigative Radiology},
  volume = {27},
  number = {9},
  pages = {723--731},
  year = {1992},
}

@article{berger1982,
  author = {Roger L. Berger},
  title = {Multiparameter Hypothesis Testing and Acceptance Sampling},
  journal = {Technometrics},
  volume = {24},
  number = {4},
  pages = {295--300},
  year = {1982},
}

@incollection{maurer1995,
  author = {Willi Maurer and Ludwig A. Hothorn and Walter Lehmacher},
  title = {Multiple Comparisons in Drug Clinical Trials and Preclinical Assays: A-Priori Ordered Hypotheses},
  booktitle = {Biometrie in der chemisch-pharmazeutischen Industrie},
  volume = {6},
  pages = {3--18},
  publisher = {Fischer},
  year = {1995},
}
"""
"""The contents of references.bib."""


def write(folder: RunFolder, run: Run, found: Comparison, choice: Chosen) -> None:
    """Write table.tex, methods.tex and references.bib."""
    files.write_text(folder.path / "table.tex", rank_tex(run, choice))
    files.write_text(folder.path / "methods.tex", methods(run, found, choice) + "\n")
    files.write_text(folder.path / "references.bib", REFERENCES)


def tex(text: str) -> str:
    r"""Text with LaTeX's special characters escaped.

    >>> tex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return "".join(SPECIAL.get(sign, sign) for sign in one_line(text))


def methods(run: Run, found: Comparison, choice: Chosen) -> str:
    """The methods and the result of a run, as LaTeX prose to paste into a paper."""
    sentences = [
        _training(run),
        _rates(run),
        _optimization(run),
        *([_comparison(run, found), _claim(found)] if found.has_choice else []),
        _result(run, found, choice),
        *_against(found),
        _software(run),
    ]
    return "\n".join(sentences)


def _training(run: Run) -> str:
    results, seeds = run.results, sorted({row.seed for row in run.results.adapters})
    ranks = sorted({row.rank for row in results.adapters})
    several = "multi-label " if run.task.several else ""
    return (
        f"We fine-tuned {tex(results.base)} into a {several}classifier of {len(results.labels):,} classes "
        f"with LoRA \\cite{{hu2022lora}} on {results.texts['train']:,} training texts, "
        f"at rank{'s' * (len(ranks) > 1)} {joined(ranks)} with "
        f"{len(seeds)} seed{'s' * (len(seeds) > 1)} per rank "
        f"({joined(seeds)}){_targets(run)}; {_scale(run)}."
    )


def _targets(run: Run) -> str:
    """The layers with adapters; empty if only the head was trained."""
    layers = {row.rank: _layers(run.recipe, row) for row in run.results.adapters if row.rank}
    return f" on {_by_rank(layers)}" if layers else ""


def _layers(recipe: Recipe, row: AdapterResult) -> str:
    """Such as `q_proj and v_proj of the last 15 layers`."""
    targets = row.settings.get("targets", recipe.lora.targets) or ["PEFT's default target modules"]
    last = row.settings.get("last_layers", recipe.lora.last_layers)
    names = ["all linear layers" if name == "all-linear" else tex(name) for name in targets]
    return joined(names) + (f" of the last {last} layers" if last else "")


def _scale(run: Run) -> str:
    scales = {row.rank: f"{row.scale:g}" for row in run.results.adapters if row.rank}
    return f"the low-rank product was scaled by {_by_rank(scales)}" if scales else "only the head was trained"


def _by_rank(values: Mapping[int, str]) -> str:
    """Such as `2`, or `0.01 (ranks 1 and 2) and 0.003 (rank 4)`."""
    ranks: dict[str, list[int]] = {}
    for rank, value in sorted(values.items()):
        ranks.setdefault(value, []).append(rank)
    if len(ranks) == 1:
        return next(iter(ranks))
    return joined([f"{value} (rank{'s' * (len(of) > 1)} {joined(of)})" for value, of in ranks.items()])


def _rates(run: Run) -> str:
    rates = {rank: f"{rate:g}" for rank, rate in run.learning_rates.items()}
    rate, tuning = _by_rank(rates), run.results.tuning
    if tuning is None:
        return f"The learning rate was {rate} and was not tuned."
    varied = joined([name.replace("_", " ") for name in tuning.varied])
    lowest = "; of learning rates within one standard error of the best, we took the lowest"
    return (
        f"For each rank, the {varied} was chosen by the {CRITERIA[tuning.metric].short} on "
        f"{tuning.texts:,} texts held out of the training texts ({len(tuning.trials):,} trials in all)"
        f"{lowest if 'learning_rate' in tuning.varied else ''}. The learning rate was {rate}."
    )


def _optimization(run: Run) -> str:
    train = run.recipe.train
    epochs = sorted({float(row.settings.get("epochs", train.epochs)) for row in run.results.adapters})
    return (
        f"Adapters were trained with AdamW \\cite{{loshchilov2019adamw}} for "
        f"{joined([f'{each:g}' for each in epochs])} epoch{'s' * (epochs != [1.0])} "
        f"in batches of {train.batch_size}, with a {train.schedule} schedule after {train.warmup_steps:,} "
        f"warmup steps and texts of at most {train.max_length:,} tokens.{_windows(run)}"
    )


def _windows(run: Run) -> str:
    """How longer texts were read, if they were not truncated."""
    train, results = run.recipe.train, run.results
    if not train.windows:
        return ""
    stride = (
        "one after another" if train.window_stride is None else f"with a stride of {train.window_stride:,}"
    )
    return (
        f" Longer texts ({results.windowed.get('train', 0):,} of {results.texts['train']:,} training texts) "
        f"were read in windows of that length, {stride}, the last one ending with the text; each of the n "
        "windows of a text had the weight 1/n in the loss, and the logits of a text were the mean over its "
        "windows."
    )


def _comparison(run: Run, found: Comparison) -> str:
    texts = f"{run.results.texts['validation']:,} validation texts"
    if len(found.seeds) == 1:
        design = f"text by text on the same {texts}"
        sample = "texts as a random sample; one seed was trained, so the comparison is of these adapters"
    else:
        design = f"text by text and seed by seed on the same {texts} and {len(found.seeds)} seeds"
        sample = (
            "texts and seeds as crossed random samples \\cite{hillis2007}, with Banerjee's conservative "
            "bound for the sum of their variances \\cite{banerjee1960}"
        )
    accuracy = "share of texts whose labels are all right" if run.task.several else "accuracy"
    by = accuracy if found.metric == "accuracy" else CRITERIA[found.metric].short
    methods = {
        "accuracy": " with score tests \\cite{tango1998}",
        "macro-f1": " with jackknife pseudo-values \\cite{dorfman1992}",
    }
    score = methods.get(found.metric, "")
    thresholds = (
        " Each label had the threshold with its highest F1 on the validation texts; the validation texts "
        "themselves were judged by thresholds from the other four fifths of them."
    )
    return f"The ranks were compared by {by} {design}, treating {sample}{score}." + (
        thresholds if run.task.several else ""
    )


def _claim(found: Comparison) -> str:
    margin = tex(CRITERIA[found.metric].metric.amount(found.margin))
    return (
        f"A rank was called sufficient if it was shown to lose less than {margin} to each of the others "
        f"\\cite{{berger1982}}, at a one-sided level of {100 * CLOSE:g}\\,\\% each, testing ranks from the "
        "largest down until one failed \\cite{maurer1995}; ranks shown to lose more than the margin, at "
        f"{100 * PASSED_OVER:g}\\,\\% divided among the others, were skipped. A rank was called the best if "
        "it was shown to be better than each of the others, at a one-sided level of "
        f"{100 * LEVEL / 2:g}\\,\\% each. "
        "Intervals and $p$-values of pairs are Bonferroni-adjusted for all pairs."
    )


def _result(run: Run, found: Comparison, choice: Chosen) -> str:
    row = next(row for row in rank_rows(run) if row.rank == choice.rank)
    over = "texts" if run.seeds == 1 else "texts and seeds"
    parts = [f"{_percent(score)} on {split}" for split, score in row.scores.items()]
    test = " The test texts were not used for any choice." if "test" in row.scores else ""
    accuracy = "a subset accuracy" if run.task.several else "an accuracy"
    wilson = " (Wilson \\cite{wilson1927})" if run.seeds == 1 else ""
    is_open = found.has_choice and found.enough is None
    verdict = (
        "No rank was shown to be sufficient or the best; we took the smallest that was not shown to be worse "
        "than the one with the best mean. "
    )
    return (verdict if is_open else "") + (
        f"We used rank {choice.rank}, with {accuracy} of {joined(parts)} "
        f"(95\\,\\% intervals over {over}{wilson})."
        f"{test}"
    )


def _percent(score: Score) -> str:
    return f"{100 * score.accuracy:.2f}\\,\\% [{100 * score.low:.1f}, {100 * score.high:.1f}]"


def _against(found: Comparison) -> list[str]:
    by = CRITERIA[found.metric]
    parts = [
        f"{shown(by, each.difference, sign='+')} {by.metric.unit} to {tex(each.baseline)} "
        f"[{shown(by, each.low, sign='+')}, {shown(by, each.high, sign='+')}], $p {_p(each.p)}$"
        for each in found.baselines
    ]
    if not parts:
        return []
    return [
        f"Its difference in {by.short} on validation is {'; '.join(parts)} "
        f"(adjusted for the baselines{' and for the choice among the ranks' * found.has_choice})."
    ]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _software(run: Run) -> str:
    results = run.results
    names = {"python": "Python", "torch": "PyTorch"}
    versions = [f"{tex(names.get(name, name))} {tex(value)}" for name, value in results.versions.items()]
    return (
        f"We used rankwise {tex(results.rankwise)} in {results.precision} on {tex(results.device)} "
        f"({', '.join(versions)})."
    )


def rank_tex(run: Run, choice: Chosen) -> str:
    r"""The rank table for LaTeX, with the rules of the package booktabs."""
    shown_splits = splits(run.results)
    heads = [f"{split.capitalize()} accuracy [95\\,\\%] & macro-F1" for split in shown_splits]
    lines = [_line(row, shown_splits, row.rank == choice.rank) for row in rank_rows(run)]
    baselines = [_line(row, shown_splits, False) for row in baseline_rows(run.results)]
    body = [r"\toprule", f"Rank & {' & '.join(heads)} & Parameters \\\\", r"\midrule", *lines]
    body += [r"\midrule", *baselines] if baselines else []
    over = "texts" if run.seeds == 1 else "texts and seeds"
    means = "" if run.seeds == 1 else f" (means over {run.seeds} seeds)"
    caption = (
        f"Accuracy and macro-F1 in percent{means} of {tex(run.results.base)} with LoRA, "
        f"{run.results.texts['train']:,} training texts. Intervals are over {over}, each by itself. "
        "The rank in bold is the one that we used."
    )
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{caption}}}",
            r"\label{tab:ranks}",
            f"\\begin{{tabular}}{{l{'rr' * len(shown_splits)}r}}",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _line(row: ScoreRow, shown_splits: Sequence[str], used: bool) -> str:
    name = f"\\textbf{{{tex(row.name)}}}" if used else tex(row.name)
    cells = [_cells(row.scores.get(split)) for split in shown_splits]
    params = f"{row.params.trainable_params:,}" if row.params else "--"
    return f"{name} & {' & '.join(cells)} & {params} \\\\"


def _cells(score: Score | None) -> str:
    if score is None:
        return " & "
    interval = f"[{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return f"{100 * score.accuracy:.2f} {interval} & {100 * score.macro_f1:.2f}"
