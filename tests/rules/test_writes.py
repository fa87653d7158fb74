"""Only `store/files.py` opens files for writing, and no code reads or writes pickles."""

from __future__ import annotations

import ast

import pytest

from tests.rules.source import calls, dotted, imported, modules

WRITER = "store.files"
METHODS = {
    "write_text", "write_bytes", "touch", "save_pretrained", "save_file", "save_model", "to_csv",
    "to_parquet", "tofile", "savetxt", "savez", "copyfile", "copy2", "copytree", "symlink_to",
}  # fmt: skip
FUNCTIONS = {
    "json.dump", "torch.save", "np.save", "tomli_w.dump", "pq.write_table", "parquet.write_table",
    "shutil.copy", "shutil.move", "os.replace", "os.rename", "tempfile.mkstemp",
    "tempfile.NamedTemporaryFile",
}  # fmt: skip
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def writes(tree: ast.AST) -> list[str]:
    """The calls in a tree that would write a file, as `line: call`."""
    return [f"{call.lineno}: {name}" for name, call in calls(tree) if _writes(name, call)]


def _writes(name: str, call: ast.Call) -> bool:
    owner, _, method = name.rpartition(".")
    if owner == "files":  # store/files.py's own functions
        return False
    if name == "os.open":
        return not call.args or dotted(call.args[0]) != "os.devnull"
    if method == "open":
        return not _reads(call, position=1 if name in ("open", "io.open", "gzip.open") else 0)
    return name in FUNCTIONS or method in METHODS


def _reads(call: ast.Call, position: int) -> bool:
    """Whether an open() call has a read-only mode, or none."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    mode = given[0] if given else call.args[position] if len(call.args) > position else ast.Constant("r")
    return (
        isinstance(mode, ast.Constant) and isinstance(mode.value, str) and not set(mode.value) & set("wax+")
    )


def test_nothing_else_opens_files_to_write() -> None:
    found = {module: writes(tree) for module, tree in modules().items() if module != WRITER}
    assert {module: lines for module, lines in found.items() if lines} == {}


def test_the_writer_writes() -> None:
    assert writes(modules()[WRITER])


def test_no_pickles() -> None:
    loaders = {"torch.load", "np.load", "numpy.load", "read_pickle"}
    offenders = set()
    for module, tree in modules().items():
        names = {name.split(".")[0] for name in imported(tree)} & PICKLES
        names |= {name for name, _ in calls(tree)} & loaders
        offenders |= {f"{module}: {name}" for name in names}
    assert offenders == set()


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, 'r+')",
        "open(path, mode)",
        "path.open('x')",
        "Path(path).open(mode='wb')",
        "gzip.open(path, 'wt')",
        "path.write_text('a')",
        "(folder / 'a').write_bytes(b'')",
        "json.dump(a, file)",
        "torch.save(a, path)",
        "model.save_pretrained(path)",
        "os.open(path, os.O_WRONLY)",
    ],
)
def test_a_write_is_seen(line: str) -> None:
    assert writes(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "open(path, 'rb')",
        "path.open()",
        "path.open('rb')",
        "path.open(encoding='utf-8', newline='')",
        "files.write_text(path, 'a')",
        "json.dumps(a)",
        "os.open(os.devnull, os.O_WRONLY)",
    ],
)
def test_a_read_is_let_pass(line: str) -> None:
    assert not writes(ast.parse(line))
