"""What a benchmark reports: figures with units, and the aim each is held against."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `aim` is the number it should reach, from below or above as `better` says."""

    name: str
    value: float
    unit: str
    aim: float | None = None
    better: Literal["higher", "lower"] = "higher"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Was the aim reached? None for a figure without one."""
        if self.aim is None:
            return None
        return self.value >= self.aim if self.better == "higher" else self.value <= self.aim

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"value": round(self.value, 4), "met": self.met}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0..1) of `values` do not exceed. Raises `ValueError` for none."""
    if not values:
        raise ValueError("nothing was measured: no value to take a percentile of")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def show(figures: Sequence[Figure], console: Console) -> None:
    """Print the table."""
    table = Table(title="Headwater benchmarks", title_justify="left")
    for heading in ("figure", "value", "unit", "aim", "reached", "note"):
        table.add_column(heading, justify="right" if heading in {"value", "aim"} else "left", no_wrap=True)
    for figure in figures:
        reached = {None: "", True: "yes", False: "[bold red]no"}[figure.met]
        aim = "" if figure.aim is None else f"{'≥' if figure.better == 'higher' else '≤'} {_number(figure.aim)}"
        table.add_row(figure.name, _number(figure.value), figure.unit, aim, reached, figure.note)
    console.print(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"
