"""The reports of runs on a server: each under the name of its run, and nothing else of the folder."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import httpx
import pytest

from rankwise import UsageError
from rankwise.serve.app import create_app
from rankwise.serve.loading import Loader
from rankwise.serve.pages import REPORT_POLICY
from rankwise.serve.service import Service
from tests.serve.made import make_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    """Two runs whose folders have the same name, and one without a report."""
    made = tmp_path_factory.mktemp("reports")
    for name in ("one/50% #1?", "two/50% #1?", "none"):
        make_adapter(made / name / "adapters" / "r4", gpt2_base)
        (made / name / "report.html").write_text(f"<p>{name}</p>", encoding="utf-8")
    (made / "none" / "report.html").unlink()
    return made


def ask(sources: list[str], *paths: str | None) -> list[httpx.Response]:
    """The responses of a server to requests of these paths; None stands for each report that it lists."""

    async def all_of_them() -> list[httpx.Response]:
        app = create_app(Service(Loader(sources, device="cpu", precision="float32")))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            listed = (await client.get("/v1/adapters")).json()["adapters"]
            reports = [each["report"] for each in listed if each["report"]]
            wanted = [name for path in paths for name in (reports if path is None else [path])]
            return [await client.get(path) for path in wanted]

    return asyncio.run(all_of_them())


def test_each_run_has_its_own_report(folder: Path) -> None:
    sources = [str(folder / "one" / "50% #1?"), f"b/c={folder / 'two' / '50% #1?'}", str(folder / "none")]
    found = ask(sources, None)
    assert [each.text for each in found] == ["<p>one/50% #1?</p>", "<p>two/50% #1?</p>"]
    assert {each.headers["content-security-policy"] for each in found} == {REPORT_POLICY}


def test_nothing_else_of_a_run_is_served(folder: Path) -> None:
    for name in ("none", "one", "none/report.html", "../none/adapters/r4/adapter_config.json", "%2e%2e/none"):
        (found,) = ask([str(folder / "none")], f"/reports/{name}")
        assert found.status_code == 404 and found.json()["error"]["code"] == "not_found"


def test_two_runs_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "none"
    shutil.copytree(folder / "none", other)
    (other / "adapters" / "r4").rename(other / "adapters" / "r8")
    with pytest.raises(UsageError, match="two runs have the name 'none'") as caught:
        Loader([str(folder / "none"), str(other)], device="cpu").folders()
    assert caught.value.hint == f"give one a name of its own: NAME={other}"
