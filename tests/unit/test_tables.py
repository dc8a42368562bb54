"""Tables of the command line: whatever the width, nothing that is shown is cut."""

import io

import pytest
from rich.console import Console

from headwater.cli import common, tables

ID = "01a2117eb00dd10a358c14bd"
MODEL = "openai/a-model-with-quite-a-long-name-2026-11-25"
ROWS = [
    ("origin", ID, "completed", "$0.003760025", "6.18", "3,058", f"openai/sim-fast, {MODEL}"),
    ("fork", ID[::-1], "failed", "$0.000425925", "0.58", "12,546", "openai/sim-fast"),
]


def printed(width: int, monkeypatch: pytest.MonkeyPatch, *, less: tuple[str, ...] = ()) -> tuple[str, str]:
    out, err = (Console(file=io.StringIO(), width=width, highlight=False) for _ in range(2))
    monkeypatch.setattr(tables, "out", out)
    monkeypatch.setattr(tables, "err", err)
    table = tables.table_of("", "task", "status", "cost", "seconds", "tokens", "models", texts=("models",), title="T")
    for row in ROWS:
        table.add_row(*row)
    tables.print_table(table, less=less)
    assert isinstance(out.file, io.StringIO)
    assert isinstance(err.file, io.StringIO)
    return out.file.getvalue(), err.file.getvalue()


@pytest.mark.parametrize("width", [20, 60, 80, 100, 120, 200, common.UNLIMITED])
def test_nothing_is_cut_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = printed(width, monkeypatch)
    assert "…" not in said
    for row in ROWS:
        for cell in row:
            for word in cell.split():
                assert word in said, (width, word)
    if width >= 120:
        assert max(len(line.rstrip()) for line in said.splitlines()) <= width


def test_what_matters_less_is_left_out_where_there_is_no_room_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = printed(200, monkeypatch, less=("seconds", "tokens"))
    assert "tokens" in wide[0]
    assert wide[1] == ""
    narrow = printed(118, monkeypatch, less=("seconds", "tokens"))
    assert "tokens" not in narrow[0]
    assert "seconds" in narrow[0]
    assert "no room here for: tokens" in narrow[1]
    assert "--json" in narrow[1]
    # Where it would not help, all of it is a list of records.
    records = printed(60, monkeypatch, less=("seconds", "tokens"))
    assert f"task     {ID}" in records[0]
    assert "12,546" in records[0]


def test_what_is_no_terminal_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert common._console().width == common.UNLIMITED
    monkeypatch.setenv("COLUMNS", "80")
    assert common._console().width == 80
