"""The end of a run: table on stdout, plot and CSV beside the log."""

import csv
from pathlib import Path

from lawa_jax.report.curves import Curves
from lawa_jax.report.plots import run_plot
from lawa_jax.report.tables import run_table, summary


def report(curves: Curves, title: str, directory: Path) -> str:
    """Write ``curves.png`` and ``curves.csv`` into `directory`; the text to print."""
    directory.mkdir(parents=True, exist_ok=True)
    picture, data = directory / "curves.png", directory / "curves.csv"
    run_plot(curves, title, picture)
    with data.open("w", newline="") as file:
        names = sorted({name for row in curves.raw.values() for name in row})
        writer = csv.writer(file)
        writer.writerow(
            [
                "epoch",
                *(f"raw_{n}" for n in names),
                *(f"lawa_{n}" for n in names),
                "epochs_saved",
                "at_least",
            ]
        )
        for epoch, raw in curves.raw.items():
            lawa, saved = curves.lawa.get(epoch, {}), curves.saved.get(epoch)
            writer.writerow(
                [
                    epoch,
                    *(raw.get(n, "") for n in names),
                    *(lawa.get(n, "") for n in names),
                    saved.epochs if saved else "",
                    saved.at_least if saved else "",
                ]
            )
    return f"{described(curves)}\nplot: {picture}\ndata: {data}"


def described(curves: Curves) -> str:
    """The table of a run, and what it shows."""
    return f"{run_table(curves)}\n\n{summary(curves)}"
