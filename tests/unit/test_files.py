"""Files are written atomically, and failures have clear messages."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ModelError, ResourceError, UsageError
from rankwise.store import files

FULL_DEVICE = Path("/dev/full")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_content_is_exactly_what_was_given(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a", b"\x00\r\n")
    files.write_text(tmp_path / "b", "é\n\r\n")
    files.write_json(tmp_path / "c", {"label": "joie é", "n": 1})
    assert (tmp_path / "a").read_bytes() == b"\x00\r\n"
    assert (tmp_path / "b").read_bytes() == "é\n\r\n".encode()
    assert json.loads((tmp_path / "c").read_text("utf-8")) == {"label": "joie é", "n": 1}
    assert "é" in (tmp_path / "c").read_text("utf-8")
    assert names(tmp_path) == ["a", "b", "c"]


def test_json_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "c", [float("nan")])
    assert names(tmp_path) == []


def test_missing_folders_are_made(tmp_path: Path) -> None:
    files.write_text(tmp_path / "x" / "y" / "z.txt", "here")
    assert (tmp_path / "x" / "y" / "z.txt").read_text() == "here"


def test_new_content_shows_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with files.writing(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_error_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.writing(path) as file:
        file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_killed_writer_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    script = (
        "import os, sys\nfrom rankwise.store import files\n"
        "with files.writing(sys.argv[1]) as file:\n"
        "    file.write('new' * 100_000); file.flush(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_content_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def spy(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, spy(name))
    files.write_text(tmp_path / "a", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_newline_is_the_callers_choice(tmp_path: Path) -> None:
    with files.writing(tmp_path / "a", newline="\r\n") as file:
        file.write("x\n")
    assert (tmp_path / "a").read_bytes() == b"x\r\n"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_folder_or_device_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        files.write_text(tmp_path, "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="not a regular file"):
        files.write_text(tmp_path / "pipe", "x")
    assert names(tmp_path) == ["pipe"]


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="cannot write") as caught:
        files.write_text(tmp_path / "a" / "b", "x")
    assert str(tmp_path / "a" / "b") in caught.value.message
    assert caught.value.hint


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write: File name too long"):
        files.write_text(tmp_path / ("n" * 300), "x")
    assert names(tmp_path) == []


def test_a_long_name_that_the_disk_allows(tmp_path: Path) -> None:
    files.write_text(tmp_path / ("n" * 255), "x")
    assert names(tmp_path) == ["n" * 255]


def test_a_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write") as caught, files.writing(tmp_path / "a") as file:
        file.write("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "disk space" in caught.value.hint
    assert names(tmp_path) == []


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="this system has no /dev/full")
def test_a_full_disk_while_appending(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(FULL_DEVICE)
    with pytest.raises(ResourceError, match="No space left"):
        files.append_line(tmp_path / "log", "{}")


def test_other_peoples_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.writing(tmp_path / "a"):
        (tmp_path / "missing").read_text()
    with pytest.raises(BrokenPipeError), files.writing(tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert names(tmp_path) == []


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "one"
    with files.new_folder(target) as folder:
        files.write_text(folder / "a", "x")
        assert not target.exists()
        assert folder.parent == target.parent
    assert names(target) == ["a"]
    assert names(target.parent) == ["one"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "one") as folder:
        files.write_text(folder / "a", "x")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_new_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with files.new_folder(tmp_path / "one") as folder:
        files.write_text(folder / "a", "x")
    assert names(tmp_path / "one") == ["a"]


def test_existing_things_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "dangling"):
        with pytest.raises(UsageError, match="already exists"), files.new_folder(tmp_path / name):
            pass
    assert names(tmp_path) == ["dangling", "file", "full"]


def test_a_folder_filled_by_someone_else_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists"), files.new_folder(tmp_path / "one"):
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "theirs").touch()
    assert names(tmp_path) == ["one"]
    assert names(tmp_path / "one") == ["theirs"]


def test_lines_are_appended(tmp_path: Path) -> None:
    files.append_line(tmp_path / "new" / "log.jsonl", '{"step": 1}')
    files.append_line(tmp_path / "new" / "log.jsonl", '{"step": "é"}')
    assert (tmp_path / "new" / "log.jsonl").read_text("utf-8") == '{"step": 1}\n{"step": "é"}\n'


def test_copy(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 10_000)
    files.copy(tmp_path / "a", tmp_path / "sub" / "b")
    assert (tmp_path / "sub" / "b").read_bytes() == (tmp_path / "a").read_bytes()
    with pytest.raises(UsageError, match="missing: cannot read"):
        files.copy(tmp_path / "missing", tmp_path / "b")
    with pytest.raises(UsageError, match="is a folder"):
        files.copy(tmp_path / "a", tmp_path / "sub")


def test_sha256(tmp_path: Path) -> None:
    data = b"rankwise" * 1_000_000
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(UsageError, match="cannot read"):
        files.sha256(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot be read as JSON"),
        (b'{"a": 1', "cannot be read as JSON"),
        (b"\xff\xfe\xfa", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b"[1, 2]", "must contain a JSON object, not a list"),
        (b'{"a": "' + b"x" * (1 << 20) + b'"}', "larger than 1048576 bytes"),
    ],
)
def test_untrusted_json_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=complaint) as caught:
        files.read_object(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in caught.value.message


def test_json_objects_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [1, null]}')
    assert files.read_object(tmp_path / "config.json") == {"a": [1, None]}
    with pytest.raises(ModelError, match="no such file"):
        files.read_object(tmp_path / "missing.json")
    with pytest.raises(ModelError, match="not a regular file"):
        files.read_object(tmp_path)
    for text in ("{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be read as JSON"):
            files.read_object(tmp_path / "bad.json")


def test_files_are_verified_against_their_digests(tmp_path: Path) -> None:
    files.verify(tmp_path)  # no digests, nothing to verify
    files.write_text(tmp_path / "a", "content")
    files.write_json(tmp_path / files.DIGESTS, {"a": files.sha256(tmp_path / "a")})
    files.verify(tmp_path)
    files.write_text(tmp_path / "a", "Content")
    with pytest.raises(ModelError, match="a: damaged: it is not as it was written"):
        files.verify(tmp_path)


def test_a_scratch_folder_is_gone_afterwards(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "content")
    with files.scratch_folder({"link": tmp_path / "a"}, {"b.json": {"c": 1}}) as folder:
        assert (folder / "link").read_text() == "content"
        assert files.read_object(folder / "b.json") == {"c": 1}
    assert not folder.exists() and (tmp_path / "a").exists()


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    claimed = [files.claim_folder(tmp_path / "runs" / "a") for _ in range(3)]
    assert [folder.name for folder in claimed] == ["a", "a-2", "a-3"]
    assert names(tmp_path / "runs") == ["a", "a-2", "a-3"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        files.claim_folder(tmp_path / "file" / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1e999}', "1e999 is too large"),
        ('{"a": [[-1e400]]}', "-1e400 is too large"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"a": ["x", {"b": ["\\udc00"]}]}', "surrogates not allowed"),
        ('{"\\ud800": 1}', "surrogates not allowed"),
    ],
)
def test_values_that_cannot_be_written_again(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        files.read_object(tmp_path / "a.json")


def test_values_at_the_limits(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1e308, "b": "\\ud83d\\ude42", "c": -0.0}')
    assert files.read_object(tmp_path / "a.json") == {"a": 1e308, "b": "\U0001f642", "c": 0.0}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG])
def test_refusals_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """No permission and a read-only disk are no errors of the user's in an option."""

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match=f"cannot write: {os.strerror(number)}") as caught:
        files.write_text(tmp_path / "new" / "a", "x")
    assert caught.value.hint
    with (
        pytest.raises(ResourceError, match=f"run: cannot write: {os.strerror(number)}"),
        files.locked(tmp_path / "run"),
    ):
        pass


def test_a_temporary_folder(tmp_path: Path) -> None:
    with files.temporary_folder(tmp_path) as folder:
        files.write_text(folder / "a", "x")
        assert folder.parent == tmp_path
        assert files.is_free(tmp_path)
    assert names(tmp_path) == []
    assert files.free_bytes(tmp_path) > 0
