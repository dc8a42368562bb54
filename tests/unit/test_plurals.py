"""Counts in sentences."""

from schemas.plurals import counted


def test_one_is_one_and_all_else_is_many() -> None:
    assert [counted(n, "task") for n in (0, 1, 2, 1000)] == ["0 tasks", "1 task", "2 tasks", "1,000 tasks"]
    assert [counted(n, "entry", "entries") for n in (1, 3)] == ["1 entry", "3 entries"]
