"""What was received lately outlives the process."""

import errno
import os
import signal
from pathlib import Path

import pytest

from services.ingest.protocols.coap.duplicates import Address
from services.ingest.protocols.coap.journal import (
    Journal,
    JournalTaken,
    open_journal,
    recent,
    sent,
)

PUMP: Address = ("10.0.0.7", 40_000)
FAN: Address = ("fe80::1%eth0", 40_001, 0, 2)
NOW = 1_800_000_000_000_000


def numbered(journal: Journal, numbers: range) -> list[int]:
    """Return which of the messages that have these numbers for their bytes are known."""
    known = journal.between(NOW - 10**12, NOW + 10**12)
    return [number for number in numbers if sent(PUMP, b"%d" % number) in known]


def test_the_next_process_knows_when_a_message_was_first_received(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", 100)
    journal.note(PUMP, b"temp 7", NOW)
    journal.note(FAN, b"temp 7", NOW + 1)
    journal.close()
    again = Journal(tmp_path / "j", 100)
    pump, fan = sent(PUMP, b"temp 7"), sent(FAN, b"temp 7")
    assert again.between(NOW, NOW + 1) == {pump: NOW, fan: NOW + 1}
    assert again.between(NOW + 1, NOW + 1) == {fan: NOW + 1}
    again.note(PUMP, b"temp 8", NOW + 2)
    assert set(again.between(NOW, NOW + 2)) == {pump, fan, sent(PUMP, b"temp 8")}
    again.close()


def test_a_clock_that_was_wrong_gives_no_message_a_time_to_come(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", 100)
    journal.note(PUMP, b"temp 7", NOW + 3_600_000_000)
    assert recent(journal, NOW) == {}
    journal.close()


def test_the_oldest_make_room(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", 10)
    for number in range(25):
        journal.note(PUMP, b"%d" % number, NOW + number)
    assert numbered(journal, range(25)) == list(range(15, 25))
    journal.close()
    again = Journal(tmp_path / "j", 10)
    again.note(PUMP, b"25", NOW + 25)
    assert numbered(again, range(26)) == list(range(16, 26))
    again.close()


def test_a_file_that_is_cut_or_spoilt_while_it_is_written_ends_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", 100)
    journal.note(PUMP, b"0", NOW)
    os.truncate(tmp_path / "j", 3)
    journal.note(PUMP, b"1", NOW + 1)
    assert numbered(journal, range(2)) == [1]
    journal.close()
    with (tmp_path / "j").open("r+b") as file:
        file.seek(8)
        file.write(os.urandom(3_000))
    again = Journal(tmp_path / "j", 100)
    again.note(PUMP, b"2", NOW + 2)
    assert 2 in numbered(again, range(3))
    again.close()


def test_a_disk_without_room_is_known_at_the_start_and_met_later_without_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        assert open_journal(tmp_path, 10) is None
    journal = Journal(tmp_path / "j", 10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        journal.note(PUMP, b"0", NOW)
    journal.note(PUMP, b"1", NOW)
    assert numbered(journal, range(2)) == [1]
    journal.close()


def test_a_file_of_another_size_or_of_anything_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"something else altogether")
    journal = Journal(tmp_path / "j", 10)
    assert journal.between(1, NOW) == {}
    journal.note(PUMP, b"1", NOW)
    journal.close()
    larger = Journal(tmp_path / "j", 20)
    assert larger.between(1, NOW) == {}
    larger.close()


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", 10)
    with pytest.raises(JournalTaken):
        Journal(tmp_path / "j", 10)
    journal.close()


def test_without_a_usable_folder_there_is_no_journal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert open_journal(None, 10) is None
    assert open_journal(tmp_path / "file", 10) is None


def test_a_killed_process_leaves_all_that_it_noted(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        journal = Journal(tmp_path / "j", 100)
        for number in range(50):
            journal.note(PUMP, b"%d" % number, NOW + number)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    again = Journal(tmp_path / "j", 100)
    assert numbered(again, range(50)) == list(range(50))
    again.close()
