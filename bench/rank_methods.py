"""Ways of choosing LoRA's rank, trained alike: the methods that `bench.rank_choice` compares.

Four methods train with PEFT and a plain loop: a fixed rank, AdaLoRA, EVA and a nested adapter as in DyLoRA.
Two train with rankwise: an adapter of the largest rank that is cut to smaller ranks, and a sweep. All of
them see the same texts in the same batches, with rankwise's settings: target modules, optimizer, schedule,
clipping, batch size and number of steps. The low-rank product of a rank 8 has the same scale everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

import rankwise
from rankwise import hardware
from rankwise.models import base as bases
from rankwise.models import peft_format
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.recipe import Recipe
from rankwise.schema import Results
from rankwise.store.run_folder import RunFolder
from rankwise.training.data import EncodedSplit
from rankwise.training.trainer import order

RANK = 8
"""The fixed rank, and the mean rank that AdaLoRA and EVA distribute over the modules."""
RANKS = (1, 2, 4, 8, 16)
"""The ranks of a sweep, and those at which cut and nested adapters are evaluated."""
LARGEST = RANKS[-1]
EVAL_BATCH = 32
PAD = 0
"""Token that fills PEFT's batches: the end-of-text token, which no text contains."""
Logits = NDArray[np.float32]
State = Mapping[str, Tensor]
"""Tensors of one adapter, by the names of `Bank.tensors`."""


@dataclass(frozen=True)
class Job:
    """What to train on, and with which settings."""

    recipe: Recipe  # its data are the CSV files of the two splits
    train: EncodedSplit
    held_out: EncodedSplit
    folder: Path  # new run folders of rankwise go here

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(self.recipe.data.labels or ())

    @property
    def precision(self) -> torch.dtype:
        """Of matrix products: bfloat16 on hardware that supports it, as in rankwise."""
        return hardware.dtype(self.recipe.machine.precision, self.device)

    @property
    def device(self) -> torch.device:
        """Where every method trains."""
        return hardware.device(self.recipe.machine.device)

    @property
    def steps(self) -> int:
        """Optimizer steps of a run."""
        return steps(len(self.train), self.recipe)


def steps(texts: int, recipe: Recipe) -> int:
    """Optimizer steps on so many training texts."""
    return recipe.train.schedule_steps(recipe.train.epochs, texts)


@dataclass(frozen=True)
class Outcome:
    """What one seed of a method gives: one classifier, or one for each of several ranks."""

    seed: int
    seconds: float  # of training; neither loading nor evaluation
    parameters: Mapping[int, int]  # rank -> trainable parameters at the end
    logits: Mapping[int, Logits]  # rank -> (texts, classes) on the held-out texts
    rates: Mapping[int, float] = field(default_factory=dict)  # rank -> learning rate, if each has its own
    tuning_seconds: float = 0.0  # of training the trials that chose these rates, for all seeds together


Method = Callable[[Job], Iterator[Outcome]]
"""Trains with every seed of the job's recipe."""


def _targets(targets: Sequence[str], base: torch.nn.Module) -> list[str]:
    """The target modules as a list, because PEFT does not combine `all-linear` with a choice of layers."""
    if "all-linear" not in targets:
        return list(targets)
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted({name.rpartition(".")[2] for name in linear} - {HEAD})


class Rival:
    """LoRA of a fixed rank in PEFT (Hu et al. 2021, arXiv 2106.09685), and what its variants share."""

    def __init__(self, job: Job, seed: int) -> None:
        import peft

        torch.manual_seed(seed)
        base = _transformers_model(job)
        self.job, self.seed, self.depth = job, seed, base.config.num_hidden_layers
        self.targets = _targets(job.recipe.lora.targets or (), base)
        self.model: Any = peft.get_peft_model(base, self.config()).to(job.device)

    @property
    def shared(self) -> dict[str, Any]:
        """PEFT's settings that all methods share."""
        lora, depth = self.job.recipe.lora, self.depth
        return {
            "task_type": "SEQ_CLS",
            "target_modules": self.targets,
            "layers_to_transform": list(range(depth - (lora.last_layers or depth), depth)),
            "lora_dropout": lora.lora_dropout,
        }

    @property
    def alpha(self) -> int:
        """lora_alpha that gives rank 8 the recipe's scale."""
        return round(self.job.recipe.lora.scale(RANK) * RANK)

    def config(self) -> Any:
        """PEFT's configuration."""
        import peft

        return peft.LoraConfig(**self.shared, r=RANK, lora_alpha=self.alpha)

    def prepare(self) -> None:
        """Called once before the first step. Its time counts as training."""

    def before_step(self, step: int) -> None:
        """Called before the forward pass of each step, counted from 0."""

    def after_step(self, step: int) -> None:
        """Called after each update, before its gradients are cleared."""

    def train(self) -> float:
        """Train on every batch; returns wall seconds."""
        from transformers import get_scheduler

        settings, start = self.job.recipe.train, time.perf_counter()
        self.prepare()
        weights = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = get_scheduler(settings.schedule, optimizer, settings.warmup_steps, self.job.steps)
        self.model.train()
        for step, batch in enumerate(_batches(self.job, self.seed)):
            self.before_step(step)
            with _autocast(self.job):
                loss = self.model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            self.after_step(step)
            optimizer.zero_grad()
        return time.perf_counter() - start

    def parameters(self) -> dict[int, int]:
        """Rank -> trainable parameters of the trained classifier."""
        return {RANK: sum(p.numel() for p in self.model.parameters() if p.requires_grad)}

    def logits(self) -> dict[int, Logits]:
        """Rank -> (texts, classes) logits of the held-out texts."""
        return {RANK: _peft_logits(self.model, self.job)}


class AdaLora(Rival):
    """AdaLoRA in PEFT (Zhang et al. 2023, arXiv 2303.10512): starts with rank 12, and prunes to a mean of 8.

    The phases have the shares of the steps that the authors' script for RTE, their smallest data set, gives
    them: 600 of 3,900 steps before the budget falls, 1,800 after it, and an allocation at every step.
    PEFT adds the orthogonal regularization to the model's loss, with its default weight.
    """

    START = 12
    BEFORE, AFTER = 600 / 3900, 1800 / 3900

    def config(self) -> Any:
        """PEFT's configuration. PEFT divides alpha by the rank at the start, also after pruning."""
        import peft

        return peft.AdaLoraConfig(
            **self.shared,
            init_r=self.START,
            target_r=RANK,
            lora_alpha=self.alpha * self.START // RANK,
            tinit=round(self.BEFORE * self.job.steps),
            tfinal=round(self.AFTER * self.job.steps),
            deltaT=1,
            total_step=self.job.steps,
        )

    def after_step(self, step: int) -> None:
        """Update the importance scores, and prune."""
        self.model.base_model.update_and_allocate(step)

    def parameters(self) -> dict[int, int]:
        """Rank -> parameters of the head and of the triplets (vector, value, vector) that are not pruned."""
        count = sum(p.numel() for name, p in self.model.named_parameters() if _is_head(name, p))
        for _, layer in _lora_layers(self.model):
            kept = int((layer.lora_E["default"] != 0).sum())
            count += kept * (layer.in_features + layer.out_features + 1)
        return {RANK: count}


class Eva(Rival):
    """EVA in PEFT (Paischer et al. 2024, arXiv 2410.07170).

    A starts with singular vectors of the module's inputs on the training texts; rank goes to the modules
    whose inputs have the most variance in them, up to rho times the mean rank.
    """

    RHO = 2.0
    vectors: ClassVar[dict[str, State]] = {}  # digest of the texts, in order -> module -> A

    def config(self) -> Any:
        """PEFT's configuration. PEFT keeps the scale when it changes a module's rank."""
        import peft

        return peft.LoraConfig(
            **self.shared,
            r=RANK,
            lora_alpha=self.alpha,
            init_lora_weights="eva",
            eva_config=peft.EvaConfig(rho=self.RHO),
        )

    def prepare(self) -> None:
        """Initialize A from the batches of the first epoch, which PEFT repeats until the vectors converge.

        This takes longer than a short training. The vectors do not depend on the learning rate, so that
        they are computed once for all rates, as a user would.
        """
        import peft

        ids = [self.job.train.ids[i] for i in order(self.seed, 0, len(self.job.train))]
        key = sha256(b"".join(text.tobytes() for text in ids)).hexdigest()
        if key not in self.vectors:
            size = self.job.recipe.train.batch_size
            batches = [_padded(ids[i : i + size], self.job.device) for i in range(0, len(ids), size)]
            self.vectors[key] = peft.get_eva_state_dict(self.model, batches, show_progress_bar=False)
        peft.initialize_lora_eva_weights(self.model, eva_state_dict=dict(self.vectors[key]))


class DyLora(Rival):
    """A nested adapter as in DyLoRA (Valipour et al. 2023, arXiv 2210.07558), on PEFT's LoRA layers.

    Each step draws a rank b from 1 to 16 uniformly, and trains the first b rows of A and columns of B. One
    adapter thus contains a trained adapter of every rank. The product is scaled by alpha / b, as that of a
    LoRA adapter of rank b, with the alpha that gives rank 8 the same scale as the other methods.
    """

    def config(self) -> Any:
        """PEFT's configuration. Its scale is 1, since the mask holds the scale of the rank drawn."""
        import peft

        return peft.LoraConfig(**self.shared, r=LARGEST, lora_alpha=LARGEST)

    def prepare(self) -> None:
        """Mask the output of every A."""
        self.random = np.random.default_rng(self.seed)
        self.mask = torch.ones(LARGEST, device=self.job.device)
        for _, layer in _lora_layers(self.model):
            layer.lora_A["default"].register_forward_hook(self._truncate)

    def before_step(self, step: int) -> None:
        """Draw the rank of this step."""
        self.use(int(self.random.integers(1, LARGEST + 1)))

    def use(self, rank: int) -> None:
        """Truncate the adapter to this rank, until the next call."""
        self.mask = nested_mask(rank, LARGEST, self.scale(rank)).to(self.job.device)

    def scale(self, rank: int) -> float:
        """Factor on the product at this rank."""
        return self.alpha / rank

    def _truncate(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output * self.mask

    def parameters(self) -> dict[int, int]:
        """Rank -> parameters of the truncated adapter and the head."""
        return {rank: count(state) for rank, state in self.states().items()}

    def logits(self) -> dict[int, Logits]:
        """Rank -> (texts, classes) logits, of all ranks in one pass."""
        return ranked_logits(self.job, self.states(), self.scale)

    def states(self) -> dict[int, State]:
        """Rank -> the truncated adapter and the head."""
        state = peft_state(self.model)
        return {rank: truncated(state, rank) for rank in RANKS}


def nested_mask(rank: int, largest: int, scale: float) -> Tensor:
    """(largest,) factors on the outputs of A: `scale` for the first `rank`, 0 for the others.

    Masked outputs give the rows of A and the columns of B beyond `rank` a gradient of 0.

    >>> nested_mask(2, 4, 8.0)
    tensor([8., 8., 0., 0.])
    """
    return torch.where(torch.arange(largest) < rank, scale, 0.0)


def truncated(state: State, rank: int) -> State:
    """The first rows of every A and columns of every B; the head as it is."""
    smaller = {HEAD: state[HEAD]}
    for module in _modules(state):
        smaller[f"{module}.lora_A"] = state[f"{module}.lora_A"][:rank]
        smaller[f"{module}.lora_B"] = state[f"{module}.lora_B"][:, :rank]
    return smaller


def cut(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the nearest matrix to B A of a smaller rank, in the Frobenius norm (Eckart and Young 1936).

    The SVD is that of an (r, r) core between two QR decompositions, rather than that of B A.

    Args:
        a: (r, in) float32.
        b: (out, r) float32.
        rank: if it is at least r, there is nothing to cut.

    Returns:
        A, (rank, in), and B, (out, rank).
    """
    if rank >= len(a):
        return a, b
    left, right = torch.linalg.qr(b), torch.linalg.qr(a.T)  # (out, r) (r, r); (in, r) (r, r)
    u, values, v = torch.linalg.svd(left.R @ right.R.T)
    root = values[:rank].sqrt()
    return (right.Q @ v[:rank].T * root).T, left.Q @ u[:, :rank] * root


def cut_state(state: State, rank: int) -> State:
    """An adapter with the update of every module cut to a smaller rank; the head as it is."""
    smaller = {HEAD: state[HEAD]}
    for module in _modules(state):
        a, b = f"{module}.lora_A", f"{module}.lora_B"
        smaller[a], smaller[b] = cut(state[a], state[b], rank)
    return smaller


def peft_state(model: Any) -> State:
    """A PEFT model's trained tensors, by rankwise's names."""
    state = {HEAD: next(p.detach() for name, p in model.named_parameters() if _is_head(name, p))}
    for name, layer in _lora_layers(model):
        module = name.removeprefix(f"base_model.model.{model.base_model.model.base_model_prefix}.")
        state[f"{module}.lora_A"] = layer.lora_A["default"].weight.detach()
        state[f"{module}.lora_B"] = layer.lora_B["default"].weight.detach()
    return state


def count(state: State) -> int:
    """Number of parameters."""
    return sum(tensor.numel() for tensor in state.values())


def ranked_logits(job: Job, states: Mapping[int, State], scale: Callable[[int], float]) -> dict[int, Logits]:
    """Logits of adapters of several ranks on the held-out texts, in one pass of rankwise.

    Args:
        job: the base model and the held-out texts.
        states: rank -> adapter.
        scale: rank -> factor on the low-rank product.

    Returns:
        Rank -> (texts, classes).
    """
    backbone = _backbone(job.recipe.base, job.precision, job.device)
    specs = [
        AdapterSpec(rank, rank * scale(rank), scale(rank), 0, 0.0, _modules(state))
        for rank, state in states.items()
    ]
    bank = Bank(specs, backbone.modules(), backbone.d_model, job.classes, device=job.device)
    for k, state in enumerate(states.values()):
        bank.load(k, state)
    return dict(zip(states, bank_logits(backbone, bank, job.held_out.ids), strict=True))


def with_peft(kind: type[Rival], job: Job) -> Iterator[Outcome]:
    """Train a PEFT method with every seed."""
    for seed in job.recipe.train.seeds:
        rival = kind(job, seed)
        seconds = rival.train()
        yield Outcome(seed, seconds, rival.parameters(), rival.logits())


def by_sweep(job: Job) -> Iterator[Outcome]:
    """Tune every rank, and train every rank and seed, in one sweep of rankwise."""
    run, results = _sweep(job, RANKS)
    for seed in job.recipe.train.seeds:
        rows = [row for row in results.adapters if row.seed == seed]
        yield Outcome(
            seed,
            _train_seconds(job, run),
            {row.rank: row.trainable_params for row in rows},
            {row.rank: _stored_logits(run, row.name) for row in rows},
            {row.rank: row.settings["learning_rate"] for row in rows},
            run.read_timing().seconds["tune"],
        )


def by_cut(job: Job) -> Iterator[Outcome]:
    """Train the largest rank with rankwise, and cut it to every smaller one."""
    run, results = _sweep(job, (LARGEST,))
    for row in results.adapters:
        state = peft_format.load(run.adapters / row.name).state
        start = time.perf_counter()
        states = {rank: cut_state(state, rank) for rank in RANKS}
        seconds = _train_seconds(job, run) + time.perf_counter() - start
        parameters = {rank: count(smaller) for rank, smaller in states.items()}
        yield Outcome(row.seed, seconds, parameters, ranked_logits(job, states, job.recipe.lora.scale))


METHODS: dict[str, Method] = {
    "fixed": partial(with_peft, Rival),
    "adalora": partial(with_peft, AdaLora),
    "eva": partial(with_peft, Eva),
    "dylora": partial(with_peft, DyLora),
    "cut": by_cut,
    "sweep": by_sweep,
}
TITLES = {
    "fixed": f"fixed rank {RANK} (PEFT)",
    "adalora": "AdaLoRA (PEFT)",
    "eva": "EVA (PEFT)",
    "dylora": "DyLoRA-style nested rank",
    "cut": f"rank {LARGEST}, cut afterwards (rankwise)",
    "sweep": "sweep with a verdict (rankwise)",
}


def _sweep(job: Job, ranks: Sequence[int]) -> tuple[RunFolder, Results]:
    """Run a sweep, or finish an interrupted one."""
    recipe = job.recipe.replace(ranks=tuple(ranks))
    run = RunFolder(job.folder / f"ranks-{'-'.join(map(str, ranks))}")
    return run, rankwise.sweep(recipe, run.path, resume=run.is_begun())


def _train_seconds(job: Job, run: RunFolder) -> float:
    """A seed's share of the training time."""
    return run.read_timing().seconds["train"] / len(job.recipe.train.seeds)


def _stored_logits(run: RunFolder, name: str) -> Logits:
    logits: Logits = safetensors.numpy.load_file(run.logits / f"{name}.safetensors")["validation"]
    return logits


@lru_cache(1)
def _backbone(base: str, precision: torch.dtype, device: torch.device) -> Backbone:
    return bases.load_backbone(bases.find(base), precision, device)


def _modules(state: State) -> tuple[str, ...]:
    return tuple(name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A"))


def _transformers_model(job: Job) -> Any:
    """The base model in transformers, in float32, with a new head."""
    import transformers

    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()  # a warning would say that the head is new
    logging.disable_progress_bar()
    kind: Any = transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(
        bases.find(job.recipe.base).folder,
        num_labels=job.classes,
        pad_token_id=PAD,
        use_cache=False,
        dtype=torch.float32,
    )


def _autocast(job: Job) -> torch.autocast:
    return torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == torch.bfloat16)


def _batches(job: Job, seed: int) -> Iterator[dict[str, Tensor]]:
    """The batches of rankwise's trainer, padded to their longest text."""
    settings, split = job.recipe.train, job.train
    for epoch in range(settings.epochs):
        texts = order(seed, epoch, len(split))
        for i in range(0, len(texts), settings.batch_size):
            members = texts[i : i + settings.batch_size]
            labels = torch.from_numpy(split.targets[members]).to(job.device)
            yield _padded([split.ids[n] for n in members], job.device) | {"labels": labels}


def _padded(texts: Sequence[Ids], device: torch.device) -> dict[str, Tensor]:
    """Token ids, padded at the end, and their mask; each (texts, longest) int64."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(ids), dtype=torch.int64) for ids in texts], True)
    ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids in texts], True, PAD)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _peft_logits(model: Any, job: Job) -> Logits:
    """(texts, classes) logits of a PEFT model on the held-out texts, in batches of similar length."""
    model.eval()
    texts = job.held_out.ids
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = torch.empty(len(texts), job.classes)
    with torch.inference_mode(), _autocast(job):
        for i in range(0, len(texts), EVAL_BATCH):
            members = by_length[i : i + EVAL_BATCH]
            batch = _padded([texts[n] for n in members], job.device)
            found[members] = model(**batch).logits.float().cpu()
    return found.numpy()


def _lora_layers(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _is_head(name: str, parameter: Tensor) -> bool:
    return parameter.requires_grad and f".{HEAD}." in name
