"""Proves `penstock.files`: what is durable, what a full disk leaves behind, and who owns a directory."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock import files
from penstock.errors import ConfigurationError, CorruptSnapshot, Fenced, Unavailable
from penstock.files import (
    AppendFile,
    DirectoryLock,
    directory_bytes,
    fsync_directory,
    hash_file,
    link_or_copy,
    make_directory,
    read_bytes_checked,
    read_owner,
    write_atomically,
    write_checked,
)
from tests.small_disk import small_disk

NOON = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


@pytest.fixture
def filling_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small") as directory:
        yield directory


def failing(error_number: int) -> Callable[..., int]:
    def fail(*_arguments: object) -> int:
        raise OSError(error_number, os.strerror(error_number))

    return fail


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- writing whole files ---


def test_write_atomically_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert names_in(tmp_path) == ["CURRENT"]


def test_what_is_private_is_for_its_owner_alone_before_it_has_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    monkeypatch.setattr("penstock.files.sync_file", lambda descriptor: modes.append(os.fstat(descriptor).st_mode))

    write_atomically(tmp_path / "key", b"secret", private=True)

    assert [stat.S_IMODE(mode) for mode in (*modes, (tmp_path / "key").stat().st_mode)] == [0o600, 0o600]


def test_the_content_is_durable_before_the_name_and_the_name_on_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "CURRENT"
    steps: list[str] = []

    def note(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def noted(*arguments: object) -> object:
            steps.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, noted)

    note(files, "sync_file")
    note(files, "fsync_directory")
    note(Path, "replace")
    write_atomically(path, b"one")
    assert steps == ["sync_file", "replace", "fsync_directory"]


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "CURRENT"
    write_atomically(path, b"one")
    monkeypatch.setattr(files, "sync_file", failing(errno.EIO))
    with pytest.raises(Unavailable) as caught:
        write_atomically(path, b"two")
    assert str(caught.value) == (
        f"PEN0412 Storing failed at {path} while writing 3 bytes: Input/output error (error 5). "
        "What was durable is unchanged, and the write can be repeated. Check the disk and the permissions."
    )
    assert path.read_bytes() == b"one"
    assert names_in(tmp_path) == ["CURRENT"]


@pytest.mark.parametrize("path", ["taken", "taken/below"])
def test_a_file_in_the_place_of_a_directory_is_said(tmp_path: Path, path: str) -> None:
    (tmp_path / "taken").write_text("text")

    with pytest.raises(ConfigurationError, match=r"PEN0158 .*taken should be a directory, and a file is in its place"):
        make_directory(tmp_path / path)
    assert read_owner(tmp_path / path) is None


def test_make_directory_creates_parents(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    fsync_directory(tmp_path / "a")


# --- checked files ---


@pytest.mark.parametrize("data", [b"", b"\n", b'{"checkpoint": 17}', bytes(range(256))])
def test_a_checked_file_gives_back_its_bytes(tmp_path: Path, data: bytes) -> None:
    write_checked(tmp_path / "marker", data)
    assert read_bytes_checked(tmp_path / "marker") == data


def test_any_flipped_bit_and_any_truncation_of_a_checked_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "marker"
    write_checked(path, b'{"checkpoint": 17}')
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content))]
    damaged += [content + b"x"]
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(CorruptSnapshot):
            read_bytes_checked(path)


def test_a_damaged_checked_file_is_named_with_what_was_expected_and_found(tmp_path: Path) -> None:
    path = tmp_path / "marker"
    write_checked(path, b"seventeen")
    path.write_bytes(path.read_bytes().replace(b"seventeen", b"seventies"))
    with pytest.raises(CorruptSnapshot) as caught:
        read_bytes_checked(path)
    assert str(caught.value) == (
        f"PEN0404 {path} is damaged: its content is 'penstock checked file 1: 9 bytes, crc32 34728fb5', "
        "its first line says 'penstock checked file 1: 9 bytes, crc32 5e6e1a08'. "
        "Use an older checkpoint, or restore the directory from a backup."
    )


def test_a_missing_checked_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes_checked(tmp_path / "marker")


# --- appending ---


def test_an_append_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    for _ in range(2):
        file = AppendFile(tmp_path / "log")
        file.append([b"ab", b"", b"c"] * 1000)
        assert file.length - file.durable_length == 3000
        file.sync()
        assert file.length == file.durable_length
        file.close()
    assert (tmp_path / "log").read_bytes() == b"abc" * 2000


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(tmp_path / "log")
    monkeypatch.setattr(os, "writev", lambda descriptor, buffers: os.write(descriptor, buffers[0][:1]))
    file.append([b"abc", b"def"])
    file.close()
    assert (tmp_path / "log").read_bytes() == b"abcdef"


def test_a_failed_append_is_cut_off_and_the_next_one_follows_the_last_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AppendFile(tmp_path / "log")
    file.append([b"good"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda descriptor, buffers: os.write(descriptor, buffers[0]))
        write = os.write
        patch.setattr(os, "write", lambda d, data: failing(errno.ENOSPC)() if len(data) == 3 else write(d, data))
        with pytest.raises(Unavailable) as caught:
            file.append([b"half", b"bad"])
    assert caught.value.code == "PEN0405"
    assert (tmp_path / "log").read_bytes() == b"good"
    assert file.usable
    file.append([b" again"])
    file.close()
    assert (tmp_path / "log").read_bytes() == b"good again"


def test_a_file_that_cannot_be_cut_refuses_further_appends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendFile(tmp_path / "log")
    monkeypatch.setattr(os, "writev", failing(errno.ENOSPC))
    monkeypatch.setattr(os, "ftruncate", failing(errno.EIO))
    with pytest.raises(Unavailable):
        file.append([b"bad"])
    assert not file.usable
    with pytest.raises(AssertionError):
        file.append([b"more"])
    file.close()


def test_after_a_failed_sync_a_file_ends_at_its_last_durable_byte_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AppendFile(tmp_path / "log")
    file.append([b"durable"])
    file.sync()
    file.append([b"in doubt"])
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_file", failing(errno.EIO))
        with pytest.raises(Unavailable):
            file.sync()
    assert not file.usable
    file.close()
    assert (tmp_path / "log").read_bytes() == b"durable"


def test_a_full_disk_is_reported_with_its_size_and_loses_nothing(filling_disk: Path) -> None:
    file = AppendFile(filling_disk / "log")
    file.append([b"x" * 1000])
    with pytest.raises(Unavailable) as caught:
        file.append([b"y" * 2_000_000])
    assert str(caught.value) == (
        f"PEN0405 There is no space left on the disk of {filling_disk}/log while appending 2,000,000 bytes: "
        "1,044,480 bytes are free. Nothing was lost: what was stored is unchanged, and the write can be repeated. "
        f"Free space there; until then nothing more can be stored in {filling_disk}."
    )
    file.append([b"z"])
    file.sync()
    file.close()
    assert (filling_disk / "log").read_bytes() == b"x" * 1000 + b"z"


def test_a_full_disk_keeps_the_old_content_of_a_replaced_file(filling_disk: Path) -> None:
    write_checked(filling_disk / "CURRENT", b"old")
    with pytest.raises(Unavailable) as caught:
        write_checked(filling_disk / "CURRENT", b"n" * 2_000_000)
    assert caught.value.code == "PEN0405"
    assert read_bytes_checked(filling_disk / "CURRENT") == b"old"
    assert names_in(filling_disk) == ["CURRENT"]


# --- linking, hashing, measuring ---


def test_link_or_copy_links_where_it_can(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"sst")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "a", tmp_path / "b")


def test_link_or_copy_copies_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"sst")
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"sst"
    assert not (tmp_path / "b").samefile(tmp_path / "a")
    assert names_in(tmp_path) == ["a", "b"]
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "a", tmp_path / "b")


def test_hash_and_size(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_bytes(b"abc")
    os.link(tmp_path / "below" / "a", tmp_path / "b")
    assert hash_file(tmp_path / "b") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert directory_bytes(tmp_path) == 3


# --- one owner ---


def test_an_owner_announces_itself_and_leaves(tmp_path: Path) -> None:
    directory = tmp_path / ".penstock"
    assert read_owner(directory) is None
    with DirectoryLock(directory, command="penstock run", started=NOON) as lock:
        assert read_owner(directory) == files.Owner(os.getpid(), "penstock run", NOON)
        lock.announce("http://127.0.0.1:7070")
        owner = read_owner(directory)
        assert owner is not None
        assert owner.url == "http://127.0.0.1:7070"
    assert read_owner(directory) is None
    lock.release()
    DirectoryLock(directory, command="penstock run", started=NOON).release()


def test_a_second_owner_is_turned_away_with_the_name_of_the_first(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path, command="penstock run", started=NOON):
        with pytest.raises(Fenced) as caught:
            DirectoryLock(tmp_path, command="penstock replay", started=NOON)
        owner = read_owner(tmp_path)
        assert owner is not None
        assert owner.command == "penstock run"
    assert str(caught.value) == (
        f"PEN0601 {tmp_path} is in use by process {os.getpid()} (penstock run, started 12:00). "
        "Stop it, or choose another directory with --dir."
    )


def test_an_owner_whose_text_is_unreadable_still_owns(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path, command="penstock run", started=NOON):
        (tmp_path / "LOCK").write_text("{")
        with pytest.raises(Fenced) as caught:
            DirectoryLock(tmp_path, command="penstock run", started=NOON)
        with pytest.raises(Fenced):
            read_owner(tmp_path)
    assert str(caught.value) == (
        f"PEN0601 {tmp_path} is in use by a process that its file LOCK does not name. "
        f"Find it with 'fuser {tmp_path}/LOCK' and stop it, or choose another directory with --dir."
    )


def test_a_killed_process_owns_nothing(tmp_path: Path) -> None:
    program = """
        import sys
        from datetime import UTC, datetime
        from pathlib import Path
        from penstock.files import DirectoryLock
        lock = DirectoryLock(Path(sys.argv[1]), command="penstock run", started=datetime(2026, 3, 14, tzinfo=UTC))
        print("locked", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        owner = read_owner(tmp_path)
        assert owner is not None
        assert owner.pid == process.pid
        with pytest.raises(Fenced):
            DirectoryLock(tmp_path, command="penstock run", started=NOON)
        process.kill()
    assert json.loads((tmp_path / "LOCK").read_text())["pid"] == process.pid
    assert read_owner(tmp_path) is None
    DirectoryLock(tmp_path, command="penstock run", started=NOON).release()
