"""Detection of devices, precisions and memory."""

from __future__ import annotations

import os

import psutil
import pytest
import torch

from rankwise import cgroups, hardware
from rankwise.errors import UsageError

HERE = torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_everywhere(name: str) -> None:
    assert hardware.device(name).type == "cpu"


def test_auto_takes_the_best_there_is() -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert hardware.device("auto").type == best


@pytest.mark.parametrize("name", ["", "tpu", "CPU", "cpu:", "cpu:x", "cpu:-1", "cuda:", "cuda:1:1", "cuda 0"])
def test_no_such_device(name: str) -> None:
    with pytest.raises(UsageError, match="unknown device") as caught:
        hardware.device(name)
    assert caught.value.hint == "use auto, cpu, cuda, cuda:N or mps"


def test_a_device_that_this_machine_lacks() -> None:
    """Reported before weights are loaded, with a hint."""
    absent = [f"cuda:{torch.cuda.device_count()}"]
    absent += [] if torch.cuda.is_available() else ["cuda"]
    absent += [] if torch.backends.mps.is_available() else ["mps"]
    for name in absent:
        with pytest.raises(UsageError, match=f"this machine has no device {name}") as caught:
            hardware.device(name)
        assert "device='cpu'" in caught.value.hint


def test_precision() -> None:
    assert hardware.dtype("float32", HERE) == torch.float32
    assert hardware.dtype("bfloat16", HERE) == torch.bfloat16
    with pytest.raises(UsageError, match="unknown precision 'float16'"):
        hardware.dtype("float16", HERE)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"arm_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_precision_follows_the_cpu(
    able: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert hardware.dtype("auto", HERE) == expected


def test_auto_precision_on_apples_gpu() -> None:
    assert hardware.dtype("auto", torch.device("mps")) == torch.float32


def test_free_memory() -> None:
    assert 1 << 20 < hardware.free_memory(HERE) <= psutil.virtual_memory().total


def test_a_container_may_have_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "free_memory", lambda: 12345)
    assert hardware.free_memory(HERE) == 12345
    assert hardware.is_limited()
    monkeypatch.setattr(cgroups, "free_memory", lambda: None)
    assert not hardware.is_limited()


def test_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert hardware.threads() == 1
    finally:
        torch.set_num_threads(before)
    assert 1 <= hardware.threads() <= (os.cpu_count() or 1)


def test_bytes_of_a_number_in_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, size in ((["amx_bf16"], 2), ([], 4)):
        able = dict.fromkeys(native, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert hardware.number_bytes("auto", "cpu") == size
        assert (hardware.number_bytes("bfloat16", "cpu"), hardware.number_bytes("float32", "cpu")) == (2, 4)
    absent = f"cuda:{torch.cuda.device_count()}"
    assert (hardware.number_bytes("auto", absent), hardware.number_bytes("float32", absent)) == (2, 4)
