"""Gradient times input: against finite differences, and from tokens to words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rankwise import Classifier, UsageError
from rankwise.cli.app import app
from rankwise.commands.explain import METHODS, TokenEffects, explain
from rankwise.models import base as bases
from rankwise.models.base import load_backbone
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone, Hook
from rankwise.nn.batch import Ids
from rankwise.nn.ragged.batch import pack
from rankwise.nn.saliency import gradient_times_input

TEXT = "my sister  was 😀 furious, naïve"


def probability(backbone: Backbone, head: torch.Tensor, ids: Ids, temperature: float) -> torch.Tensor:
    """(classes,) probabilities of one text, without gradients."""
    with torch.no_grad():
        hidden = backbone(pack([[ids]]), Hook())
        return ((hidden @ head.T).double()[0] / temperature).softmax(0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_effect_is_the_slope_along_the_embedding(
    family: str, temperature: float, request: pytest.FixtureRequest
) -> None:
    base = bases.find(str(request.getfixturevalue(f"{family}_base")))
    backbone = load_backbone(base, torch.float32, torch.device("cpu"))
    ids = np.array(
        [20, 7, 33, 51, 12], dtype=np.int64
    )  # all different, so that each has an embedding of its own
    head = torch.randn(3, backbone.d_model, generator=torch.Generator().manual_seed(1))
    found, effects = gradient_times_input(backbone, head, ids, temperature)
    before = probability(backbone, head, ids, temperature)
    assert found == pytest.approx(before.numpy(), abs=1e-6)
    label, step = int(before.argmax()), 0.01
    for place, token in enumerate(ids.tolist()):
        embedding, sides = backbone.tokens[token].clone(), []
        for factor in (1 + step, 1 - step):
            backbone.tokens[token] = factor * embedding
            sides.append(float(probability(backbone, head, ids, temperature)[label]))
        backbone.tokens[token] = embedding
        assert effects[place] == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=0.02, abs=2e-5)


def test_words_add_up_their_tokens(classifier: Classifier) -> None:
    tokens = classifier.token_effects(TEXT)
    found = explain(classifier, TEXT, "gradient")
    assert [word.text for word in found.words] == TEXT.split()
    assert len(tokens.effects) > len(found.words)
    inside = [bool(TEXT[start:end].strip()) for start, end in tokens.places]  # others are only spaces
    assert sum(word.effect for word in found.words) == pytest.approx(tokens.effects[inside].sum())
    by_occlusion = classifier.explain(TEXT)
    assert found.label == by_occlusion.label
    assert found.probability == pytest.approx(by_occlusion.probability, abs=1e-5)
    assert [word.start for word in found.words] == [word.start for word in by_occlusion.words]


def test_each_token_counts_for_its_word(classifier: Classifier) -> None:
    tokens = classifier.token_effects(TEXT)
    found = explain(replaced := _Fixed(classifier, np.ones(len(tokens.effects))), TEXT, "gradient")
    counts = [int(word.effect) for word in found.words]
    assert sum(counts) == sum(bool(TEXT[start:end].strip()) for start, end in tokens.places)
    assert min(counts) >= 1
    assert counts[3] >= 2  # an emoji is several bytes
    assert replaced.labels == classifier.labels


class _Fixed:
    """A classifier whose tokens have given effects."""

    def __init__(self, classifier: Classifier, effects: np.ndarray) -> None:
        self._classifier, self._effects, self.labels = classifier, effects, classifier.labels
        self.predict_proba = classifier.predict_proba

    def token_effects(self, text: str) -> TokenEffects:
        return replace(self._classifier.token_effects(text), effects=self._effects)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_places_are_those_of_the_ids(family: str, request: pytest.FixtureRequest) -> None:
    tokenizer = Tokenizer.load(request.getfixturevalue(f"{family}_base"))
    for length in (3, 64):
        ids, places = tokenizer.places(TEXT, length)
        (expected,) = tokenizer([TEXT], length)
        np.testing.assert_array_equal(ids, expected)
        assert places.shape == (len(ids), 2) and (places[:, 0] <= places[:, 1]).all()
    covered = {i for start, end in places.tolist() for i in range(start, end)}
    assert covered >= {i for i, sign in enumerate(TEXT) if not sign.isspace()}


def test_words_beyond_the_maximum_length_have_no_effect(classifier: Classifier) -> None:
    text = " ".join(["glad"] * 100)
    effects = [word.effect for word in explain(classifier, text, "gradient").words]
    assert effects[0] != 0 and effects[-1] == 0


def test_other_methods_are_refused(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="no such method") as refused:
        classifier.explain(TEXT, method="guess")
    assert all(method in refused.value.hint for method in METHODS)
    with pytest.raises(UsageError, match="1 word"):
        classifier.explain("glad", method="gradient")


def test_the_command_line_has_the_method(adapter: Path) -> None:
    words = ["explain", str(adapter), "so very glad", "--precision", "float32", "--method"]
    shown = CliRunner().invoke(app, [*words, "gradient"])
    assert shown.exit_code == 0 and "estimated by gradient" in shown.output
    found = json.loads(CliRunner().invoke(app, [*words, "gradient", "--json"]).stdout)
    assert [word["text"] for word in found["words"]] == ["so", "very", "glad"]
    assert CliRunner().invoke(app, [*words, "guess"]).exit_code == 2
