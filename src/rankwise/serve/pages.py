"""The page at `/`, the page at `/docs`, and the reports of runs. Nothing is loaded from elsewhere.

Each page's content security policy names the hashes of its own style and script, so that nothing else can
run in it, whatever a text contains.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.responses import Response

from rankwise.serve.lineup import Source
from rankwise.serve.problems import Problem
from rankwise.serve.service import Service
from rankwise.store.run_folder import RunFolder

_FOLDER = Path(__file__).parent
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
"""A report is a page without scripts."""


def version() -> str:
    """The installed version."""
    return installed("rankwise")


def add(app: FastAPI, service: Service) -> None:
    """Add the pages to an application. The page of the API is rendered once, from its OpenAPI document."""
    page = (_FOLDER / "page.html").read_text("utf-8")

    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return html(page)

    docs = html_of_docs(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return html(docs)

    @app.get("/reports/{run:path}", include_in_schema=False)
    async def report(run: str) -> Response:
        for each in service.lineup.adapters.values():
            if each.source.run_name == run and (found := _report(each.source)):
                headers = {"Content-Security-Policy": REPORT_POLICY}
                return Response(found.read_bytes(), 200, headers, "text/html")
        raise Problem("not_found", "there is no such report")


def report_path(source: Source) -> str | None:
    """The path of the report of an adapter's run on this server; None if there is none."""
    return f"/reports/{quote(source.run_name)}" if _report(source) else None


def _report(source: Source) -> Path | None:
    path = RunFolder(source.run).path / "report.html" if source.run else None
    return path if path and path.is_file() else None


def html(page: str) -> Response:
    """A page with the policy that only its own style and script may run."""
    return Response(page, headers={"Content-Security-Policy": policy(page)}, media_type="text/html")


def policy(page: str) -> str:
    """The content security policy of a page (W3C, Content Security Policy Level 3)."""
    styles, scripts = (
        " ".join(map(_hash, re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL))) or "'none'"
        for tag in ("style", "script")
    )
    return (
        f"default-src 'none'; style-src {styles}; script-src {scripts}; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def html_of_docs(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document: endpoints, fields, examples, errors."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"schema": lambda value: _schema(value, document), "kind": _kind}
    environment.filters["indented"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.filters["compact"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.get_template("docs.html.jinja").render(document=document)


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _schema(value: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """A schema, with a reference to a model resolved."""
    if "$ref" not in value:
        return value
    found: dict[str, Any] = document["components"]["schemas"][value["$ref"].rpartition("/")[2]]
    return found


def _kind(value: dict[str, Any]) -> str:
    """A type in words: `string`, `list of string`, `string or null`."""
    if "$ref" in value:
        return str(value["$ref"].rpartition("/")[2])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(map(_kind, value["anyOf"])))
    if value.get("type") == "array":
        return f"list of {_kind(value.get('items', {}))}"
    if "enum" in value:
        return " or ".join(map(json.dumps, value["enum"]))
    return str(value.get("type", "any"))
