"""The migrations of the read models: one order, with no number twice and none left out."""

from importlib import resources


def test_migrations_are_numbered_one_after_the_other() -> None:
    directory = resources.files("projections").joinpath("migrations")
    names = sorted(file.name for file in directory.iterdir() if file.name.endswith(".sql"))
    assert [int(name.partition("_")[0]) for name in names] == list(range(1, len(names) + 1))
