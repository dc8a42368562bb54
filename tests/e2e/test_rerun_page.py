"""What docs/replay.md shows of the commands that run tasks again is what they print, but for ids, times and costs."""

import asyncio
import re
from pathlib import Path

import orjson

from tests.replay.record_story import RERUN, record

_VARIES = (
    (r"\d{2}:\d{2}:\d{2}\.\d{3}", "TIME"),
    (r"\d{13}-\d+", "POSITION"),
    (r"\$[0-9.]+", "COST"),
    (r"\b\d+\.\d+\b", "NUMBER"),
    (r"\b[0-9a-f]{24}\b", "TASK"),
    (r"\b[0-9a-f]{8}\b", "SHORT"),
    (r" on \S+-\d+-[0-9a-f]{6}\b", " on WORKER"),
)


def words(text: str) -> list[str]:
    """What a command says, in whatever lines and columns: widths and what runs in parallel differ each time."""
    for pattern, name in _VARIES:
        text = re.sub(pattern, name, text)
    return sorted(word for word in text.split() if not re.fullmatch(r"[^\w≠]+", word))


def test_the_page_shows_what_the_commands_print(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    shown = orjson.loads(RERUN.read_bytes())
    now = asyncio.run(record(tmp_path)).printed
    assert list(now) == list(shown)
    for name, one in now.items():
        for part in ("command", "output"):
            assert words(one[part]) == words(shown[name][part]), "run 'python -m tests.replay.record_story'"
