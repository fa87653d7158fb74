"""The bank: its target modules, its initialization, and its memory layout."""

from __future__ import annotations

import math

import pytest
import torch

from rankwise.errors import UsageError
from rankwise.nn.bank import HEAD, AdapterSpec, Bank, layer_of, match_modules, tensor_shapes
from tests.unit.nn import models

GPT2_MODULES = [f"h.{i}.{s}" for i in range(12) for s in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")]
MODULES = {"h.0.attn.c_attn": (64, 192), "h.1.attn.c_attn": (64, 192), "h.1.mlp.c_proj": (256, 64)}


def adapter(rank: int, seed: int) -> AdapterSpec:
    return AdapterSpec(rank, 1.0, 1.0, seed, 0.0, tuple(MODULES) if rank else ())


def bank(*specs: AdapterSpec, head_std: float = 0.02) -> Bank:
    return Bank(specs, MODULES, 64, 6, head_std)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["c_attn"], [f"h.{i}.attn.c_attn" for i in range(12)]),
        (["attn.c_proj"], [f"h.{i}.attn.c_proj" for i in range(12)]),
        (["c_proj"], [s for s in GPT2_MODULES if s.endswith("c_proj")]),
        (["h.1.attn.c_attn"], ["h.1.attn.c_attn"]),
        (["h.11.mlp.c_proj", "h.0.attn.c_attn"], ["h.0.attn.c_attn", "h.11.mlp.c_proj"]),
        (["c_attn", "h.0.attn.c_attn"], [f"h.{i}.attn.c_attn" for i in range(12)]),
        (["all-linear"], GPT2_MODULES),
    ],
)
def test_match_modules(targets: list[str], expected: list[str]) -> None:
    """Each module once, in the order of the forward pass."""
    assert match_modules(GPT2_MODULES, targets) == tuple(expected)


@pytest.mark.parametrize("target", ["attn", "proj", "_attn", "q_proj", "h.12.attn.c_attn", "", "*"])
def test_a_target_that_names_nothing(target: str) -> None:
    with pytest.raises(UsageError, match="names no linear layer") as caught:
        match_modules(GPT2_MODULES, ["c_attn", target])
    assert repr(target) in caught.value.message
    assert caught.value.hint == "it has c_attn, c_proj"


def test_layer_of() -> None:
    assert [layer_of(module) for module in ("h.3.attn.c_attn", "layers.11.mlp.down_proj")] == [3, 11]


def test_tensor_shapes() -> None:
    assert tensor_shapes(adapter(0, 1), MODULES, 64, 6) == {HEAD: (6, 64)}
    shapes = tensor_shapes(adapter(4, 1), MODULES, 64, 6)
    assert shapes["h.1.mlp.c_proj.lora_A"] == (4, 256)
    assert shapes["h.1.mlp.c_proj.lora_B"] == (64, 4)
    assert len(shapes) == 2 * len(MODULES) + 1


def test_fresh_factors_are_drawn_as_peft_draws_them() -> None:
    """A is uniform within 1 / sqrt(in) and B is zero, so the adapter starts as the base model."""
    tensors = bank(adapter(16, 3)).tensors[0]
    for module, (n_in, _) in MODULES.items():
        a, bound = tensors[f"{module}.lora_A"].detach(), 1 / math.sqrt(n_in)
        peer = torch.empty(16, n_in)
        torch.nn.init.kaiming_uniform_(peer, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
        assert 0.98 * bound < float(a.abs().max()) <= bound
        assert abs(float(a.mean())) < 5 * bound / math.sqrt(3 * a.numel())
        assert float(a.std()) == pytest.approx(float(peer.std()), rel=0.05)
        assert not tensors[f"{module}.lora_B"].any()
    names = [name for name in tensors if name.endswith("lora_A")]
    assert not torch.equal(tensors[names[0]], tensors[names[1]])


@pytest.mark.parametrize("head_std", [0.02, 0.5])
def test_fresh_heads(head_std: float) -> None:
    """The head only depends on the seed: equal for all ranks with a seed, different for other seeds."""
    made = bank(adapter(0, 1), adapter(4, 1), adapter(4, 2), head_std=head_std)
    first, same, other = (tensors[HEAD].detach() for tensors in made.tensors)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(head_std, rel=0.15)


def test_fresh_values_know_nothing_of_neighbors() -> None:
    """Initialization does not depend on earlier random draws in this process."""
    alone = bank(adapter(4, 2)).state(0)
    torch.manual_seed(12345)
    among = bank(adapter(1, 2), adapter(4, 2), adapter(2, 3)).state(1)
    assert all(torch.equal(alone[name], among[name]) for name in alone)
    other = bank(adapter(4, 3)).state(0)
    assert not any(torch.equal(alone[name], other[name]) for name in alone if not name.endswith("lora_B"))


def test_tensors_are_views_of_the_flat_parameters() -> None:
    made = bank(adapter(1, 1), adapter(0, 2), adapter(2, 3))
    assert made.segments[-1].stop == len(made.flat) == len(made.grad)
    for k, (segment, tensors) in enumerate(zip(made.segments, made.tensors, strict=True)):
        assert segment.stop - segment.start == sum(tensor.numel() for tensor in tensors.values())
        made.flat[segment] = k + 1.0
        made.grad[segment] = -k - 1.0
        for tensor in tensors.values():
            assert tensor.is_leaf and tensor.requires_grad and tensor.dtype == torch.float32
            assert tensor.grad is not None
            assert set(tensor.flatten().tolist()) == {k + 1.0}
            assert set(tensor.grad.flatten().tolist()) == {-k - 1.0}


def test_gradients_add_up_in_the_flat_tensor() -> None:
    made = bank(adapter(1, 1), adapter(0, 2))
    torch.autograd.backward(made.tensors[1][HEAD].sum())
    torch.autograd.backward(made.tensors[1][HEAD].sum())
    assert not made.grad[made.segments[0]].any()
    assert set(made.grad[made.segments[1]].tolist()) == {2.0}


def test_state_and_load_are_inverse() -> None:
    made = bank(adapter(1, 1), adapter(2, 3))
    state = made.state(1)
    copy = {name: tensor.clone() for name, tensor in state.items()}
    made.flat.zero_()
    assert all(torch.equal(state[name], copy[name]) for name in state)
    made.load(1, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in made.state(1).items())
    assert not made.flat[made.segments[0]].any()


def test_names() -> None:
    assert [spec.name for spec in (adapter(0, 1), adapter(16, 110))] == ["r0-s1", "r16-s110"]


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_fresh_adapter_is_the_base_model(family: str) -> None:
    from rankwise.nn.classifier import logits
    from rankwise.nn.ragged.batch import pack

    backbone = models.backbone(family)
    texts = models.texts([4, 9])
    fresh = models.bank(backbone, [models.spec(backbone, 0, seed=4), models.spec(backbone, 8, seed=4)])
    head, adapted = logits(backbone, fresh, pack([texts, texts]))
    torch.testing.assert_close(head, adapted, rtol=0, atol=1e-6)
