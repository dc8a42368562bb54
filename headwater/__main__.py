"""The command `headwater`, which is also `python -m headwater`."""

import sys

from headwater.shadows import shadow


def main() -> None:
    """Entry point of the command. Exits with 2 where a user's module would be imported in the place of ours."""
    wrong = shadow()
    if wrong is not None:
        sys.stderr.write(f"error: {wrong}\n")
        sys.exit(2)
    from headwater.cli import main as run

    run()


if __name__ == "__main__":
    main()
