"""Names that tell things apart."""

from __future__ import annotations

from pathlib import Path

from lensmith.exporters.distinct_names import distinct, shortest_ends


def test_what_was_there_before_gets_a_number() -> None:
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_paths_have_the_shortest_ends_that_differ() -> None:
    paths = [Path("/x/a/int4"), Path("/y/a/int4"), Path("/y/b/int4"), Path("/y/b/int8"), Path("int4")]
    assert shortest_ends(paths) == ["x/a/int4", "y/a/int4", "b/int4", "int8", "int4"]
