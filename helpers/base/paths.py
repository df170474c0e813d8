"""Where the repository lies, and how messages name what is in it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def shown(path: Path) -> str:
    """`path` as a message names it: from the repository's root where it lies inside, else whole."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
