"""Counts in sentences: `1 task`, `2 tasks`."""


def counted(count: int, thing: str, things: str | None = None) -> str:
    """A count with its noun, in the singular or plural. `things` is the plural where it is not `thing` with an s."""
    return f"{count:,} {thing if count == 1 else things or f'{thing}s'}"
