"""Tables and sizes for people to read in a terminal."""

from collections.abc import Sequence


def printable(text: str) -> str:
    """Text without characters that command a terminal: names in checkpoints can hold any."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def human(size: float) -> str:
    """Bytes for people: ``97.8 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, rule: bool = False) -> str:
    """A table with the first column left-aligned and the others right-aligned.

    Args:
      head: names of the columns.
      rows: as many cells each.
      rule: draw a line under the head.
    """
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], *["-" * len(lines[0])] * rule, *lines[1:]])
