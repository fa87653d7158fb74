"""Damaged adapter folders are rejected with a ModelError and never used."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwise import ModelError
from rankwise.models import peft_format as adapters
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

COUNT = 2000 if os.environ.get("RANKWISE_FAULTS") == "full" else 200
WEIGHTS, CONFIG, MODEL = "adapter_model.safetensors", "adapter_config.json", "classifier.json"


def trusted(folder: Path) -> list[Path]:
    """The files that an adapter is loaded from, so not its model card."""
    return [path for path in sorted(folder.iterdir()) if path.name != "README.md"]


def flip(folder: Path, other: Path, draw: random.Random) -> str:
    """Flip one bit of one file."""
    path = draw.choice(trusted(folder))
    data = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit} of {path.name}"


def flip_tensors(folder: Path, other: Path, draw: random.Random) -> str:
    """Flip one bit of the weights, the largest part of an adapter."""
    path = folder / WEIGHTS
    data = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return f"bit {bit} of the weights"


def truncate(folder: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(trusted(folder))
    size = draw.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name} cut to {size} bytes"


def extend(folder: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice([folder / WEIGHTS, folder / MODEL, folder / CONFIG])
    with path.open("ab") as file:
        file.write(draw.randbytes(draw.randint(1, 40)))
    return f"{path.name} with more at its end"


def empty(folder: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice(trusted(folder))
    path.write_bytes(b"")
    return f"{path.name} empty"


def swap(folder: Path, other: Path, draw: random.Random) -> str:
    """An intact file from another adapter."""
    name = draw.choice([WEIGHTS, CONFIG, MODEL, files.DIGESTS])
    shutil.copy(other / name, folder / name)
    return f"{name} of another adapter"


def exchange(folder: Path, other: Path, draw: random.Random) -> str:
    """Two files swapped."""
    one, two = draw.sample(trusted(folder), 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return f"{one.name} and {two.name} exchanged"


def remove(folder: Path, other: Path, draw: random.Random) -> str:
    path = draw.choice([path for path in trusted(folder) if path.name != files.DIGESTS])
    path.unlink()
    return f"{path.name} gone"


def reshape(folder: Path, other: Path, draw: random.Random) -> str:
    """A tensor with another shape in a valid file with matching digests."""
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    name = draw.choice(sorted(tensors))
    rows, columns = tensors[name].shape
    # If the score head has another shape, it does not match the labels or the base model.
    if "score" in name:
        tensors[name] = torch.zeros(draw.choice([rows + 1, 1, rows + 7]), columns)
    elif "lora_A" in name:
        tensors[name] = torch.zeros(draw.choice([rows + 1, rows - 1, 0]), columns)
    else:
        tensors[name] = torch.zeros(rows, draw.choice([columns + 1, columns - 1, 0]))
    save(folder, tensors)
    return f"{name} with another shape"


def spoil(folder: Path, other: Path, draw: random.Random) -> str:
    """A NaN in a valid file with matching digests."""
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    name = draw.choice(sorted(tensors))
    flat = tensors[name].view(-1)
    flat[draw.randrange(len(flat))] = draw.choice([float("nan"), float("inf"), float("-inf")])
    save(folder, tensors)
    return f"{name} with no number"


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    digests = json.loads((folder / files.DIGESTS).read_text())
    digests[WEIGHTS] = files.sha256(folder / WEIGHTS)
    (folder / files.DIGESTS).write_text(json.dumps(digests))


DAMAGES: list[Callable[[Path, Path, random.Random], str]] = [
    flip, flip_tensors, truncate, extend, empty, swap, exchange, remove, reshape, spoil,
]  # fmt: skip


def test_damaged_adapters(run: RunFolder, tmp_path: Path) -> None:
    whole, other = run.adapters / "r4-s110", run.adapters / "r1-s110"
    adapters.load(whole)
    missed = []
    for number in range(COUNT):
        draw = random.Random(number)
        folder = shutil.copytree(whole, tmp_path / "damaged")
        what = DAMAGES[number % len(DAMAGES)](folder, other, draw)
        try:
            adapters.load(folder)
            missed.append(what)
        except ModelError as error:
            assert "\n" not in error.message and str(folder) in error.message
        shutil.rmtree(folder)
    assert missed == []


def test_a_list_of_digests_is_not_asked_of_peft(run: RunFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(run.adapters / "r4-s110", tmp_path / "a")
    (folder / files.DIGESTS).unlink()
    assert adapters.load(folder).spec.rank == 4


def test_the_hint_says_what_to_do_after_a_change_by_hand(run: RunFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(run.adapters / "r4-s110", tmp_path / "a")
    (folder / MODEL).write_text((folder / MODEL).read_text() + " ")
    with pytest.raises(ModelError) as caught:
        adapters.load(folder)
    assert caught.value.hint.endswith("remove sha256.json")


@pytest.mark.parametrize("listing", ['{"../x": "0"}', '{"gone": "0"}', '{"classifier.json": 5}', "[]", "{"])
def test_digests_that_cannot_be(run: RunFolder, tmp_path: Path, listing: str) -> None:
    folder = shutil.copytree(run.adapters / "r4-s110", tmp_path / "a")
    (folder / files.DIGESTS).write_text(listing)
    with pytest.raises(ModelError):
        adapters.load(folder)


@settings(max_examples=COUNT // 4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), keep=st.integers(0, 400))
def test_any_bytes_in_the_weights_without_digests(
    run: RunFolder, tmp_path: Path, data: bytes, keep: int
) -> None:
    """PEFT's folders have no digests: damage that is detected raises a ModelError, nothing else."""
    folder = tmp_path / "a"
    if not folder.exists():
        shutil.copytree(run.adapters / "r4-s110", folder)
        (folder / files.DIGESTS).unlink()
    whole = (run.adapters / "r4-s110" / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep] + data + whole[keep + len(data) :])
    try:
        adapters.load(folder)
    except ModelError as error:
        assert str(folder) in error.message
