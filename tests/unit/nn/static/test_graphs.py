"""What is recorded and when, and what happens if recording fails."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rankwise.nn.static import graphs
from rankwise.nn.static.graphs import Graph, Replayed

CPU = torch.device("cpu")


class Counted:
    """Counts recordings. Its graphs do nothing, so a result that changes was computed eagerly."""

    def __init__(self, error: Exception | None = None) -> None:
        self.recorded = 0
        self.error = error

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        self.recorded += 1
        assert not gc.isenabled()
        if self.error:
            raise self.error
        return self, torch.tensor([-1])

    def replay(self) -> None:
        pass


def results(function: Replayed[str], keys: str) -> list[int]:
    return [int(function(doubled, key, torch.tensor([i]))) for i, key in enumerate(keys)]


def doubled(key: str, numbers: Tensor) -> Tensor:
    return 2 * numbers


def test_a_key_is_recorded_when_it_comes_back() -> None:
    record = Counted()
    assert results(Replayed(CPU, record), "abaab") == [0, 2, 4, -1, 8]
    assert record.recorded == 2


def test_a_replay_reads_the_new_numbers() -> None:
    function = Replayed[str](CPU, Counted())
    results(function, "aaa")
    (_, buffer, _) = function._graphs["a"]
    assert buffer.tolist() == [2]


def test_without_a_recorder_everything_is_computed() -> None:
    assert results(Replayed(CPU), "aaaa") == [0, 2, 4, 6]


def test_so_many_graphs_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    record = Counted()
    assert results(Replayed(CPU, record), "aabbab") == [0, 2, 4, 6, -1, 10]
    assert record.recorded == 1


def test_where_nothing_can_be_recorded_training_goes_on() -> None:
    record = Counted(RuntimeError("operation not permitted when stream is capturing"))
    reasons: list[str] = []
    assert results(Replayed(CPU, record, reasons.append), "aaabb") == [0, 2, 4, 6, 8]
    assert record.recorded == 1
    assert reasons == ["operation not permitted when stream is capturing"]


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError("it cannot be recorded")])
def test_the_collector_pauses_while_a_graph_is_recorded(is_enabled: bool, error: Exception | None) -> None:
    """It could free other graphs, which makes CUDA give up the recording. `Counted` checks that it pauses."""
    before = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        results(Replayed(CPU, Counted(error)), "aa")
        assert gc.isenabled() == is_enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_too_little_memory_is_told() -> None:
    """Out of memory is handled elsewhere, by splitting the bank."""
    function = Replayed[str](CPU, Counted(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        results(function, "aa")
