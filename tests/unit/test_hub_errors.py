"""Classification of Hub errors: an outage, a refusal, a disk error, or a bug."""

from __future__ import annotations

import errno
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from rankwise import Recipe, hub
from rankwise.data import load as data
from rankwise.errors import DataError, ModelError, RankwiseError, ResourceError, Unreachable, UsageError
from rankwise.models import base as bases

CLIENT: Any = import_module(errors.HTTPError.__module__.partition(".")[0])  # type: ignore[attr-defined]
REQUEST = CLIENT.Request("GET", "http://hub")


def answered(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("no", response=CLIENT.Response(status, request=REQUEST))


def led_to(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def raised(status: int) -> Exception:
    """As the Hub client raises it, from the error of its HTTP library."""
    response = CLIENT.Response(status, request=REQUEST)
    return led_to(answered(status), CLIENT.HTTPStatusError("no", request=REQUEST, response=response))


ERRORS: list[tuple[Exception, type[RankwiseError]]] = [
    (CLIENT.ConnectError("refused"), Unreachable),
    (CLIENT.ReadTimeout("slow"), Unreachable),
    (OfflineModeIsEnabled("offline"), Unreachable),
    (LocalEntryNotFoundError("not in the cache"), Unreachable),
    (led_to(ValueError("no file"), ConnectionError()), Unreachable),
    (answered(503), Unreachable),
    (answered(429), Unreachable),
    (raised(503), Unreachable),
    (OSError(errno.ENOSPC, "no space left"), ResourceError),
    (PermissionError(errno.EACCES, "not yours"), UsageError),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_models_and_datasets_alike(
    error: Exception, kind: type[RankwiseError], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(caught_of_model(error, monkeypatch)) is kind
    assert type(caught_of_data(error, monkeypatch)) is kind


@pytest.mark.parametrize("error", [answered(400), answered(403), raised(413), ValueError("odd")])
def test_a_refusal_is_no_outage(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(caught_of_model(error, monkeypatch)) is ModelError
    assert type(caught_of_data(error, monkeypatch)) is DataError


@pytest.mark.parametrize("kind", [TypeError, AttributeError, KeyError, ImportError])
def test_a_mistake_in_a_program_is_no_outage(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it was raised while an outage was being handled."""
    for error in (kind("oops"), led_to(kind("oops"), ConnectionError())):
        assert not hub.is_outage(error)
        assert caught_of_model(error, monkeypatch) is error
        assert type(caught_of_data(error, monkeypatch)) is DataError


def caught_of_model(error: Exception, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(Exception) as caught:
        bases.find("me/tiny")
    return caught.value


def caught_of_data(error: Exception, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(RankwiseError) as caught:
        data.load(Recipe(data="me/tiny"))
    return caught.value


def test_a_name_is_looked_for_on_the_disk_first(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no config"):
        bases.find(str(tmp_path))
