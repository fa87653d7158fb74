"""bench/rank_choice.py: samples, nested and cut adapters, choices, tables, and a whole tiny benchmark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench.rank_choice import Choice, Entry, choose, cross_fitted, enter, section, summary_rows
from bench.rank_methods import (
    LARGEST,
    RANK,
    RANKS,
    DyLora,
    Job,
    Outcome,
    Rival,
    cut,
    nested_mask,
    peft_state,
    ranked_logits,
)
from bench.rank_trials import Run, Trial, Trials, name_of, parted, read, score, stratified

from rankwise.data.load import Split
from rankwise.models.base import find, load_backbone
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.plan import adapter
from rankwise.recipe import Recipe
from rankwise.training.data import EncodedSplit
from tests import tiny
from tests.training import train

peft_warns = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def recipe(base: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {"base": str(base), "data_config": None, "last_layers": 1, "seeds": (0, 1)}
    values |= {"epochs": 1, "max_length": 64, "precision": "float32", "baselines": False}
    return Recipe.preset("emotion-smollm2").replace(**values | {"tune": False, "cuts": False} | changes)


def trial(
    losses: dict[int, float], method: str = "cut", *, rate: float | None = 1e-3, seed: int = 0
) -> Trial:
    run = Run(
        data="made",
        base="tiny",
        method=method,
        phase="tuning",
        train_texts=10,
        texts=4,
        epochs=1,
        rate=rate,
    )
    answers = {rank: "1010" if seed else "1110" for rank in losses}
    parameters = {rank: 100 * rank for rank in losses}
    return Trial(
        run=run,
        seed=seed,
        seconds=2.0,
        parameters=parameters,
        log_loss=losses,
        answers=answers,
        rates={} if rate else dict.fromkeys(losses, 3e-3),
        tuning_seconds=0.0 if rate else 7.0,
    )


# Samples


def test_stratified_keeps_the_shares_of_the_classes() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 20
    chosen = stratified(labels, 20, seed=3)
    assert len(set(chosen.tolist())) == 20
    assert np.bincount(np.array(labels)[chosen]).tolist() == [10, 6, 4]
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, stratified(labels, 20, seed=3))
    assert chosen.tolist() != stratified(labels, 20, seed=4).tolist()


def test_stratified_accepts_a_class_of_one_text() -> None:
    assert len(stratified([0, 0, 0, 1], 2, seed=0)) == 2
    assert stratified([0, 1], 9, seed=0).tolist() == [0, 1]


def test_parted_loses_no_text() -> None:
    split = Split("train", [f"text {i}" for i in range(9)], [i % 3 for i in range(9)])
    sample, rest = parted(split, 3)
    assert sorted(sample.texts + rest.texts) == split.texts
    assert sorted(sample.labels) == [0, 1, 2]
    assert all(
        split.labels[int(text[5:])] == label for text, label in zip(rest.texts, rest.labels, strict=True)
    )


def test_a_file_is_cut_into_disjoint_texts(tmp_path: Path) -> None:
    texts = [(f"text {i}", "ab"[i % 2]) for i in range(100)]
    corpus = read(str(tiny.write_csv(tmp_path / "letters" / "train.csv", texts)), 50, 30)
    assert (corpus.name, len(corpus.train), len(corpus.tuning), len(corpus.validation)) == (
        "letters",
        50,
        10,
        30,
    )
    assert not set(corpus.train.texts) & set(corpus.validation.texts)
    assert not set(corpus.fit.texts) & set(corpus.tuning.texts)
    assert {*corpus.fit.texts, *corpus.tuning.texts} == set(corpus.train.texts)


def test_name_of() -> None:
    assert name_of(Path("questions/train.csv")) == "questions"
    assert name_of(Path("reviews.csv")) == "reviews"


# Nested and cut adapters


def test_nested_mask() -> None:
    assert nested_mask(2, 4, 8.0).tolist() == [8.0, 8.0, 0.0, 0.0]
    assert nested_mask(4, 4, 4.0).tolist() == [4.0] * 4


@pytest.fixture
def job(llama_base: Path, tmp_path: Path) -> Job:
    """Thirty texts on the tiny Llama, in float32."""
    split = Split("train", tiny.texts(30, seed=1), [0, 1, 2] * 10)
    encoded = EncodedSplit.encode(split, Tokenizer.load(llama_base), 64)
    settings = recipe(llama_base, labels=tiny.LABELS, epochs=3, batch_size=8, warmup_steps=2)
    return Job(settings, encoded, encoded, tmp_path)


@peft_warns
def test_a_nested_adapter_trains_and_computes_its_first_ranks(job: Job) -> None:
    rival = DyLora(job, seed=0)
    rival.prepare()
    factors = {name: p for name, p in rival.model.named_parameters() if "lora_" in name and p.requires_grad}
    for name, parameter in factors.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    rival.use(4)
    logits = rival.model.eval()(input_ids=torch.from_numpy(job.train.ids[0])[None]).logits
    logits[0, 0].backward()
    for name, parameter in factors.items():
        by_rank = parameter.grad if "lora_A" in name else parameter.grad.T
        assert by_rank[:4].any() and not by_rank[4:].any(), name
    ours = ranked_logits(job, rival.states(), rival.scale)[4][0]
    np.testing.assert_allclose(ours, logits[0].detach().numpy(), rtol=1e-4, atol=1e-5)
    assert rival.parameters()[LARGEST] == sum(p.numel() for p in rival.model.parameters() if p.requires_grad)


@peft_warns
def test_all_linear_layers_of_the_last_layers(job: Job) -> None:
    """PEFT's own `all-linear` cannot be combined with a choice of layers."""
    chosen = job.recipe.replace(targets=("all-linear",), last_layers=1)
    backbone = load_backbone(find(job.recipe.base), torch.float32, torch.device("cpu"))
    state = peft_state(Rival(replace(job, recipe=chosen), seed=1).model)
    expected = adapter(chosen, RANK, 1, list(backbone.modules()), (), {}).modules
    assert {name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A")} == set(expected)


@peft_warns
def test_peft_trains_as_rankwise_does(job: Job) -> None:
    """The same batches, schedule, clipping and scale: the same adapter after twelve steps."""
    rival = Rival(job, seed=1)
    backbone = load_backbone(find(job.recipe.base), torch.float32, torch.device("cpu"))
    state = peft_state(rival.model)
    modules = tuple(name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A"))
    spec = AdapterSpec(RANK, RANK * 2.0, job.recipe.lora.scale(RANK), 1, 0.0, modules)
    bank = Bank([spec], backbone.modules(), backbone.d_model, job.classes)
    bank.load(0, state)
    before = bank.flat.clone()
    rival.train()
    assert (
        len(train(backbone, bank, job.train.ids, job.train.targets, **job.recipe.flat())) == job.steps == 12
    )
    assert (bank.flat - before).abs().max() > 1e-3
    for name, tensor in peft_state(rival.model).items():
        np.testing.assert_allclose(bank.state(0)[name], tensor, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_cut_is_the_truncated_svd(rank: int) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(6, 11)), random.normal(size=(9, 6))
    smaller_a, smaller_b = cut(torch.from_numpy(a), torch.from_numpy(b), rank)
    u, values, v = np.linalg.svd(b @ a)
    assert smaller_a.shape == (rank, 11) and smaller_b.shape == (9, rank)
    np.testing.assert_allclose(smaller_b @ smaller_a, u[:, :rank] * values[:rank] @ v[:rank], atol=1e-12)


def test_cut_to_its_own_rank_changes_nothing() -> None:
    a, b = torch.randn(3, 5), torch.randn(2, 3)
    assert cut(a, b, 3) == (a, b)


def test_cut_of_an_untrained_adapter_is_zero() -> None:
    smaller_a, smaller_b = cut(torch.randn(4, 5), torch.zeros(6, 4), 2)
    assert not (smaller_b @ smaller_a).any()


# Choices


def test_the_lowest_log_loss_chooses_rate_and_rank() -> None:
    trials = [trial({1: 0.9, 16: 0.7}), trial({1: 0.6, 16: 0.8}, rate=1e-2)]
    assert choose(trials) == Choice(1e-2, 1)


def test_a_sweep_tunes_itself_and_leaves_the_rank_to_the_verdict() -> None:
    assert choose([]) == Choice(None, None)


def test_cross_fitted_answers_do_not_choose_their_own_rank() -> None:
    even = np.tile(np.arange(400) % 2 == 0, (2, 1))
    answers, ranks = cross_fitted({1: even, 2: ~even})
    assert ranks == [2, 1]  # the best rank of the other half
    assert not answers.any()


def test_scores_leave_out_diverged_ranks() -> None:
    right = np.log(np.array([[0.7, 0.3], [0.4, 0.6]], dtype=np.float32))
    outcome = Outcome(5, 1.0, {1: 10, 2: 20}, {1: right, 2: np.full_like(right, np.nan)})
    found = score(trial({1: 1.0}).run, outcome, np.array([0, 0]))
    assert found.answers == {1: "10"}
    assert found.log_loss == pytest.approx({1: -np.log([0.7, 0.4]).mean()})


# Tables


def entry(method: str, rank: int | None) -> Entry:
    losses = {8: 0.5} if method == "fixed" else dict.fromkeys(RANKS, 0.5)
    rate = None if method == "sweep" else 1e-3
    final = [trial(losses, method, seed=seed, rate=rate) for seed in (0, 1)]
    tuning = [trial(losses, method), trial(losses, method, rate=3e-3)] if rate else []
    return Entry(method, tuning, Choice(rate, rank), final)


def test_summary_rows() -> None:
    fixed, sweep, halves = summary_rows([entry("fixed", 8), entry("sweep", None)], [1e-3, 3e-3, 1e-2])
    assert fixed[1:7] == ["8", "0.001 (edge)", "62.50", "17.68", "0.500", ""]
    assert fixed[-3:] == ["800", "4", "4"]
    assert sweep[1:3] == ["1 (verdict open)", "0.003"] and sweep[-2:] == ["7", "4"]
    assert sweep[6] == "+0.00"
    assert halves[1:4] == ["1 and 1", "", "62.50"]
    assert {len(row) for row in (fixed, sweep, halves)} == {11}


# The whole benchmark


@peft_warns
def test_a_tiny_benchmark_runs_once(llama_base: Path, tmp_path: Path) -> None:
    for split, number in (("train", 320), ("validation", 18)):
        tiny.write_csv(tmp_path / "data" / f"{split}.csv", tiny.rows(number, seed=number))
    corpus = read(str(tmp_path / "data"), 320, 18)
    trials = Trials(tmp_path, recipe(llama_base, text_column="text", label_column="label"), (3e-3, 1e-2))
    methods = ["fixed", "adalora", "dylora", "cut", "sweep"]
    entries = [enter(trials, corpus, method) for method in methods]
    for found in entries:
        losses = [loss for final in found.final for loss in final.log_loss.values()]
        assert found.ranks == ([8] if found.method in ("fixed", "adalora") else list(RANKS))
        assert all(0 < loss < 3 for loss in losses)
        assert all(final.seconds > 0 for final in found.final)
    sizes = {found.method: found.final[0].parameters for found in entries}
    assert sizes["cut"] == sizes["sweep"] == sizes["dylora"]
    assert sizes["fixed"][8] == sizes["sweep"][8]
    assert section(corpus, entries, trials.rates).count("\n| ") >= 3 * len(methods)

    before = trials.path.read_bytes()
    assert [enter(trials, corpus, method) for method in methods] == entries
    assert trials.path.read_bytes() == before
