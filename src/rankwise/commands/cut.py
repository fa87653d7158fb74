"""The `cut` command: an adapter folder, cut to a smaller rank."""

from __future__ import annotations

from pathlib import Path

from rankwise.commands.locate import adapter_folder, beside, local_place
from rankwise.errors import UsageError
from rankwise.models import peft_format
from rankwise.nn.cut import cut as cut_adapter
from rankwise.paths import expanded
from rankwise.schema import Cut


def cut(adapter: Path | str, rank: int, out: Path | str | None = None) -> Cut:
    """Cut an adapter to a smaller rank, and write it to a new adapter folder in PEFT's format.

    The update of each target module is replaced by its best approximation of the given rank in the Frobenius
    norm, a truncated singular value decomposition (Eckart and Young 1936). The score head is not changed. The
    base model is not needed.

    Args:
        adapter: folder of the adapter, written by rankwise or PEFT.
        rank: the new rank, from 1 to below the adapter's.
        out: folder to write; by default beside the adapter, such as `r16-s110-cut4` for `r16-s110`.

    Returns:
        The new folder, its number of parameters, and how much of the update it keeps.

    Raises:
        ModelError: this is not an adapter folder, or the adapter cannot be used.
        UsageError: the rank is not below the adapter's, or the folder to write is not empty.
        ResourceError: the disk is full.
    """
    source = adapter_folder(adapter)
    saved = peft_format.load(source)
    _check(rank, saved.spec.rank, source)
    folder = expanded(out) if out is not None else default_folder(local_place(adapter, source), rank)
    found = cut_adapter(saved.spec, saved.state, rank)
    peft_format.save_from(source, folder, found.spec, found.state)
    return Cut(
        folder=str(folder),
        from_rank=saved.spec.rank,
        rank=rank,
        params=sum(tensor.numel() for tensor in found.state.values()),
        adapter_bytes=(folder / peft_format.WEIGHTS).stat().st_size,
        kept=found.kept,
        kept_by_module=found.kept_by_module,
    )


def default_folder(adapter: Path, rank: int) -> Path:
    """`ADAPTER-cutRANK`, beside the adapter.

    >>> default_folder(Path("runs/first/adapters/r16-s110"), 4).name
    'r16-s110-cut4'
    """
    return beside(adapter, f"cut{rank}")


def _check(rank: int, largest: int, adapter: Path) -> None:
    if 1 <= rank < largest:
        return
    hint = f"give a rank from 1 to {largest - 1}"
    if largest < 2:
        hint = "an adapter of rank 1 has no smaller rank" if largest else "a linear probe has nothing to cut"
    raise UsageError(f"{adapter}: has rank {largest} and cannot be cut to rank {rank}", hint=hint)
