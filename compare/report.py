"""Writes the report of a comparison: the page, a PNG of each plot, and figures.json with every figure.

Everything is computed from the raw records in the directory, so it can be written again at any time, also while runs
are still missing: the page says which.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from penstock.compare.conclusion import Conclusion, conclusion_of
from penstock.compare.hypotheses import Finding, findings_of
from penstock.compare.statistics import METHOD
from penstock.compare.summary import Summary, summarise
from penstock.errors import ConfigurationError
from penstock.files import storage_errors, write_atomically


class Figures(msgspec.Struct, frozen=True):
    """What figures.json holds."""

    method: str
    conclusion: Conclusion
    hypotheses: list[Finding]
    summary: Summary
    omitted_plots: dict[str, str]


def write_report(directory: Path, out: Path | None = None) -> Path:
    """From the comparison in `directory`. Writes `out`, which is report.html in the directory if left out, and beside
    it figures.json and a folder of plots; returns where the page is.

    Raises InvalidInput for a directory without complete runs, with damaged ones, or with those of another comparison.
    """
    try:
        from penstock.compare.canvas import Omission, Plot, render
        from penstock.compare.page import page_of
        from penstock.compare.plots import plots_of
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "PEN0981",
            f"A report is drawn by a library that is missing ({error}). Install it: pip install 'penstock[compare]'.",
        ) from error
    summary = summarise(directory)
    conclusion, findings, plots = conclusion_of(summary), findings_of(summary), plots_of(summary)
    target = out or directory / "report.html"
    pictures = target.parent / "plots"
    with storage_errors(target, "writing the report"):
        pictures.mkdir(parents=True, exist_ok=True)
    drawn = [picture for plot in plots if isinstance(plot, Plot) for picture in plot.pictures]
    rendered = {picture.name: render(picture) for picture in drawn}
    for name, both in rendered.items():
        write_atomically(pictures / f"{name}.png", both.png)
    omitted = {plot.name: plot.reason for plot in plots if isinstance(plot, Omission)}
    figures = Figures(METHOD, conclusion, findings, summary, omitted)
    write_atomically(target.parent / "figures.json", msgspec.json.encode(figures) + b"\n")
    write_atomically(target, page_of(summary, conclusion, findings, plots, rendered).encode())
    return target
