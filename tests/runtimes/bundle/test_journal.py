"""What an interrupted build notes of a file: found again under the same key, as far as it was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from lensmith.runtimes.bundle.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "w.data.journal", "key")
    assert journal.finished == {}
    journal.record("one", ["a", "b"])
    journal.record("two", [])
    Journal(journal.path, "key").record("three", ["c"])
    return journal.path


def test_what_was_recorded_is_found_under_its_key(path: Path) -> None:
    assert Journal(path, "key").finished == {"one": ["a", "b"], "two": [], "three": ["c"]}
    for other in ("", "key2", "ke"):
        assert Journal(path, other).finished == {}


def test_a_line_that_is_half_written_counts_for_nothing(path: Path) -> None:
    text = path.read_text()
    path.write_text(text[:-5])
    assert Journal(path, "key").finished == {"one": ["a", "b"], "two": []}
    for damaged in ("", "{", "[]\n", '{"key": "key"}\n{"item": "x"}\n', "\n" + text):
        path.write_text(damaged)
        assert Journal(path, "key").finished == {}


def test_a_journal_that_is_restarted_knows_nothing(path: Path) -> None:
    journal = Journal(path, "key")
    journal.restart()
    assert journal.finished == Journal(path, "key").finished == {}
    journal.record("four", ["d"])
    assert Journal(path, "key").finished == {"four": ["d"]}
