"""`rankwise predict --url`, the examples, `rankwise explain`, and the arguments of `rankwise serve`."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from rankwise import Classifier, DataError, Unreachable, UsageError
from rankwise.cli.app import app
from rankwise.commands.explain import MOST_WORDS, explain, variants
from rankwise.serve import client as clients
from rankwise.serve.client import RemoteClassifier
from rankwise.serve.problems import CODES
from rankwise.serve.start import check_address, read_token, require_extra
from tests import tiny
from tests.docs.markdown import ROOT, blocks, tables
from tests.serve.running import TOKEN, Running

TEXTS = tiny.texts(6, seed=2)


@pytest.fixture
def local(served_folder: Path) -> Classifier:
    return Classifier.load(served_folder / "seven", device="cpu", precision="float32")


# The client


def test_a_remote_classifier_answers_as_its_folder(
    server: Running, local: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "CHUNK_TEXTS", 4)
    remote = RemoteClassifier(server.url, "seven", token=TOKEN)
    assert remote.labels == local.labels and remote.max_length == local.max_length
    np.testing.assert_allclose(remote.predict_proba(TEXTS), local.predict_proba(TEXTS), atol=1e-5)
    assert [each.label for each in remote(TEXTS)] == [each.label for each in local(TEXTS)]
    assert (remote.logits(TEXTS).argmax(-1) == local.logits(TEXTS).argmax(-1)).all()
    assert remote([]) == [] and remote.predict_proba([]).shape == (0, 7)


def test_a_file_is_labeled_by_a_server(server: Running, local: Classifier, tmp_path: Path) -> None:
    tiny.write_csv(tmp_path / "in.csv", tiny.rows(6, seed=2))
    words = ["predict", "seven", "--url", server.url, "--input", str(tmp_path / "in.csv")]
    done = CliRunner().invoke(
        app, [*words, "--output", str(tmp_path / "out.csv")], env={"RANKWISE_TOKEN": TOKEN}
    )
    assert done.exit_code == 0, done.output
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted_label"] for row in rows] == [each.label for each in local(TEXTS)]


def test_what_a_server_refuses_is_told(server: Running) -> None:
    with pytest.raises(UsageError, match="no adapter 'eight'"):
        RemoteClassifier(server.url, "eight", token=TOKEN)
    with pytest.raises(UsageError, match="bearer token") as refused:
        RemoteClassifier(server.url, "seven", token="wrong")
    assert "RANKWISE_TOKEN" in refused.value.hint
    remote = RemoteClassifier(server.url, "seven", token=TOKEN)
    with pytest.raises(DataError, match="text 2 is empty"):
        remote(["so", " "])
    with pytest.raises(UsageError, match="a list of texts"):
        remote("so")
    done = CliRunner().invoke(app, ["predict", "seven", "so", "--url", server.url, "--base", "x"])
    assert done.exit_code == 2


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", "http://", "ftp://host/"])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(UsageError, match="not the address of a server"):
        RemoteClassifier(url, "seven")


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(Unreachable, match="does not answer"):
            RemoteClassifier(f"http://127.0.0.1:{port}", "seven")


class _Overloaded(BaseHTTPRequestHandler):
    """Answers every second request with 429."""

    asked = 0

    def do_GET(self) -> None:
        self._send(200, {"adapters": [{"name": "a", "labels": ["x", "y"], "max_length": 8}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        answer = {"adapter": "a", "probabilities": [{"label": label, "probability": 0.5} for label in "yx"]}
        found = {"predictions": [{"answers": [answer]}]}
        self._send(429 if self.asked % 2 else 200, found)

    def _send(self, status: int, found: object) -> None:
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def overloaded() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Overloaded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_overloaded_server_is_asked_again(overloaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = RemoteClassifier(overloaded, "a")
    np.testing.assert_array_equal(remote.predict_proba(["so"]), [[0.5, 0.5]])
    monkeypatch.setattr(clients, "PATIENCE", -1.0)
    with pytest.raises(Unreachable, match="overloaded"):
        remote.predict_proba(["so"])


# Examples


@pytest.mark.parametrize(
    "command", [[sys.executable, "-W", "ignore", "examples/ask_server.py"], ["sh", "examples/ask_server.sh"]]
)
def test_examples_ask(server: Running, command: list[str]) -> None:
    done = subprocess.run(
        [*command, server.url],
        cwd=ROOT,
        env=os.environ | {"RANKWISE_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    lines = done.stdout.splitlines()
    if command[0] == "sh":
        assert [next(iter(json.loads(line))) for line in lines[:5]] == [
            "base", "predictions", "predictions", "adapter", "id"
        ]  # fmt: skip
    else:
        assert len(lines) == 2 * 5 and lines[0].split()[2] == "three"


def test_deployment_files_are_those_of_the_guide() -> None:
    guide = (ROOT / "docs" / "guide" / "serving.md").read_text("utf-8")
    languages = {"Containerfile": "dockerfile", "rankwise.service": "ini", "kubernetes.yaml": "yaml"}
    for name, language in languages.items():
        assert (ROOT / "examples" / "deploy" / name).read_text("utf-8") in blocks(guide, language)


def test_the_kubernetes_manifest_is_consistent() -> None:
    text = (ROOT / "examples" / "deploy" / "kubernetes.yaml").read_text("utf-8")
    deployment, service = yaml.safe_load_all(text)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    (container,) = template["spec"]["containers"]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in template["spec"]["volumes"]}
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]
        assert container[probe]["httpGet"]["path"] in ("/livez", "/readyz")
    drain = int(container["args"][container["args"].index("--drain-seconds") + 1])
    assert drain + 30 <= template["spec"]["terminationGracePeriodSeconds"]


def test_the_container_runs_a_command_that_exists() -> None:
    text = (ROOT / "examples" / "deploy" / "Containerfile").read_text("utf-8")
    lines = dict(
        line.split(" ", 1) for line in text.splitlines() if line[:4] in ("ENTR", "CMD ", "USER", "FROM")
    )
    assert json.loads(lines["ENTRYPOINT"])[:2] == ["rankwise", "serve"]
    assert json.loads(lines["CMD"]) == ["/run"] and lines["USER"] == "10001"


# Part of systemd, which macOS and most containers lack; there is no other judge of a unit file.
@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="no systemd-analyze")
def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    unit = (ROOT / "examples" / "deploy" / "rankwise.service").read_text("utf-8")
    # systemd-analyze wants a program that exists.
    (tmp_path / "rankwise.service").write_text(unit.replace("/opt/rankwise/bin/rankwise", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "rankwise.service")],
        capture_output=True,
        text=True,
    )
    assert "rankwise.service" not in done.stderr, done.stderr


# Explain


def test_an_explanation_is_that_of_its_variants(local: Classifier) -> None:
    text = "my sister  was furious"
    found = explain(local, text)
    assert variants(text) == [
        text,
        "sister  was furious",
        "my was furious",
        "my sister  furious",
        "my sister  was",
    ]
    whole, *without = local.predict_proba(variants(text))
    best = int(whole.argmax())
    assert found.label == local.labels[best] and found.probability == pytest.approx(whole[best])
    assert [word.effect for word in found.words] == pytest.approx([whole[best] - w[best] for w in without])
    assert [text[word.start :].startswith(word.text) for word in found.words] == [True] * 4


def test_texts_that_cannot_be_explained(local: Classifier) -> None:
    with pytest.raises(DataError, match="empty"):
        explain(local, " ")
    for text in ("glad", "so " * (MOST_WORDS + 1)):
        with pytest.raises(UsageError, match="the text has"):
            explain(local, text)


def test_explain_prints_words_or_json(served_folder: Path) -> None:
    words = ["explain", str(served_folder / "seven"), "so very glad", "--precision", "float32"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "very" in shown.output and "effect" in shown.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert [word["text"] for word in found["words"]] == ["so", "very", "glad"]


# Starting a server


def test_other_addresses_need_a_token() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_address(host, "", no_auth=False)
    check_address("0.0.0.0", TOKEN, no_auth=False)
    check_address("0.0.0.0", "", no_auth=True)
    with pytest.raises(UsageError, match="there is no token"):
        check_address("0.0.0.0", "", no_auth=False)


def test_tokens_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKWISE_TOKEN", raising=False)
    assert read_token(None) == ""
    monkeypatch.setenv("RANKWISE_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    path = tmp_path / "token"
    path.write_text("another-token-for-tests\n")
    assert read_token(path) == "another-token-for-tests"
    for bad in ("", "short", "with a space in it ....", "naïve-token-of-length-20"):
        path.write_text(bad)
        with pytest.raises(UsageError, match="at least 16"):
            read_token(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "missing")


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.serve.start.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as refused:
        require_extra()
    assert "rankwise[serve]" in refused.value.hint


def test_a_port_in_use_is_told(server: Running, served_folder: Path) -> None:
    port = str(server.address[1])
    done = CliRunner().invoke(app, ["serve", str(served_folder / "three"), "--port", port])
    assert done.exit_code == 2 and "cannot listen" in done.output


# The guide


def test_the_guide_has_every_code_and_endpoint(server: Running) -> None:
    guide = (ROOT / "docs" / "guide" / "serving.md").read_text("utf-8")
    endpoints, codes, *_ = tables(guide)
    assert [row[:2] for row in codes[1:]] == [[code, str(status)] for code, (status, _) in CODES.items()]
    document = httpx.get(f"{server.url}/openapi.json").json()
    served = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert sorted(row[0] for row in endpoints[1:]) == sorted(served)


def test_the_guide_has_the_example(server: Running) -> None:
    guide = (ROOT / "docs" / "guide" / "serving.md").read_text("utf-8")
    (shown,) = blocks(guide, "python")
    assert shown in (ROOT / "examples" / "ask_server.py").read_text("utf-8")
