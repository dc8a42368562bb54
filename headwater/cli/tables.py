"""Tables for people: nothing in them is cut, whatever the width of the terminal.

Cells are copied (ids, digests, models), so a table that is too wide first leaves out columns that matter less and says
so, and then becomes a list of records.
"""

from collections.abc import Sequence

from rich.measure import Measurement
from rich.table import Column, Table

from headwater.cli.common import err, out

PADDING = (0, 2, 0, 0)


def table_of(*columns: str, numbers: Sequence[str] = (), texts: Sequence[str] = (), title: str = "") -> Table:
    """A table of these columns. `numbers` stand on the right; `texts` may take several lines, and break at spaces.

    Every other column stays on one line.
    """
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=PADDING, show_edge=False)
    for name in columns:
        justify = "right" if name in numbers else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in texts)  # type: ignore[arg-type]  # one of its words
    return table


def print_table(table: Table, *, less: Sequence[str] = ()) -> None:
    """Print it. Of the columns in `less` as many are left out, the last first, as do not fit."""
    left_out: list[str] = []
    shown = table
    while not _fits(shown) and len(left_out) < len(less):
        left_out = [less[-1 - len(left_out)], *left_out]
        shown = _without(table, left_out)
    if not _fits(shown):
        _print_records(table)
        return
    out.print(shown)
    if left_out:
        err.print(f"[dim]no room here for: {', '.join(left_out)}; a wider terminal and --json have all[/dim]")


def _fits(table: Table) -> bool:
    return Measurement.get(out, out.options, table).minimum <= out.width and _words_fit(table)


def _words_fit(table: Table) -> bool:
    """Rich narrows what may wrap without a thought for its words: is there room for the longest of each column?"""
    widths = [_narrowest(column) for column in table.columns]
    return sum(widths) + PADDING[1] * (len(widths) - 1) <= out.width


def _narrowest(column: Column) -> int:
    cells = [str(cell) for cell in (column.header, column.footer, *column.cells)]
    parts = cells if column.no_wrap else [word for cell in cells for word in cell.split()]
    return max((out.render_str(part).cell_len for part in parts), default=0)


def _without(table: Table, names: Sequence[str]) -> Table:
    kept = [column for column in table.columns if column.header not in names]
    narrow = table_of(title=str(table.title or ""))
    narrow.show_footer = table.show_footer
    for column in kept:
        narrow.add_column(column.header, column.footer, justify=column.justify, overflow="fold", no_wrap=column.no_wrap)
    for row in zip(*(column.cells for column in kept), strict=True):
        narrow.add_row(*row)
    return narrow


def _print_records(table: Table) -> None:
    """Each row as lines of `column  value`."""
    if table.title:
        out.print(table.title, soft_wrap=True)
    headers = [str(column.header) for column in table.columns]
    width = max(map(len, headers))
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    if table.show_footer:
        rows.append(tuple(column.footer for column in table.columns))
    for number, row in enumerate(rows):
        if number:
            out.print()
        for header, cell in zip(headers, row, strict=True):
            if str(cell):
                out.print(f"[bold]{header:{width}}[/bold]  {cell}", soft_wrap=True)
