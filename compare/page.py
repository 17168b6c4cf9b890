"""The report of a comparison as one page of HTML: no script, no picture from outside, nothing to fetch.

What always holds: the conclusion stands on top, the differences between the modes before any figure, and what was not
measured is named with its reason. Whoever can't see a plot has its description and the table of the numbers behind it.
The same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Final

from penstock.compare.canvas import DARK, FONTS, LIGHT, Omission, Picture, Plot, Rendered
from penstock.compare.conclusion import Conclusion
from penstock.compare.figures import HARMS
from penstock.compare.hypotheses import Finding
from penstock.compare.statistics import METHOD
from penstock.compare.summary import Cell, Summary
from penstock.compare.wording import NOTHING, interval, milliseconds, number, percent, seconds

VERDICTS: Final = ("refuted", "confirmed", "undecided", "silent")
"""In the order in which they are counted in front of the table: what surprises comes first."""

SECTIONS: Final = {
    "differences": "Differences",
    "plots": "Plots",
    "hypotheses": "Hypotheses",
    "figures": "All figures",
    "validity": "Validity",
    "method": "Method",
}


def page_of(
    summary: Summary,
    conclusion: Conclusion,
    findings: Sequence[Finding],
    plots: Sequence[Plot | Omission],
    rendered: Mapping[str, Rendered],
) -> str:
    """As text of HTML. `rendered` has every picture of the plots by its name."""
    sections = [
        _head(summary, conclusion),
        _differences(summary),
        '<div id="plots">',
        *(_plot(plot, rendered) for plot in plots if isinstance(plot, Plot)),
        "</div>",
        _omissions([plot for plot in plots if isinstance(plot, Omission)]),
        _hypotheses(findings),
        _figures(summary),
        _validity(summary, conclusion),
        _method(summary),
    ]
    template = Template(files("penstock.compare").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"Stream and mesh: {summary.plan.app.name}"),
        light=_variables(LIGHT),
        dark=_variables(DARK),
        fonts=FONTS,
        body="\n".join(filter(None, sections)),
    )


def _variables(colours: Mapping[str, str]) -> str:
    return "".join(f"--{name}: {colour}; " for name, colour in colours.items())


# ---- sections


def _head(summary: Summary, conclusion: Conclusion) -> str:
    plan = summary.plan
    complete = sum(run.status == "complete" for run in summary.runs)
    kicker = f"Two ways to answer failure, measured with the same functions: {plan.app.name}"
    return f"""<header>
<p class="kicker">{escape(kicker)}</p>
<h1>{escape(conclusion.headline)}</h1>
<ul class="lead">{_items(conclusion.sentences)}</ul>
</header>
{_table(("", *conclusion.sides), [tuple(map(escape, (line.what, *line.figures))) for line in conclusion.board])}
<div class="choose">
{_choice("stream", "Choose the stream where", conclusion.choose_stream)}
{_choice("mesh", "Choose the mesh where", conclusion.choose_mesh)}
</div>
<dl class="facts">{
        _facts(
            {
                "Runs": f"{complete} complete of {len(summary.runs) + len(summary.missing)}",
                "Each": f"{number(plan.seconds)} s after {number(plan.warmup_s)} s of warm-up",
                "Load": f"{number(plan.rate)} orders/s by a Poisson process, skew {number(plan.theta)}",
                "Seeds": f"{len(plan.seeds)}: {METHOD}",
            }
        )
    }</dl>
<nav aria-label="Sections">{"".join(f'<a href="#{name}">{text}</a>' for name, text in SECTIONS.items())}</nav>"""


def _choice(mode: str, title: str, reasons: Sequence[str]) -> str:
    body = f"<ul>{_items(reasons)}</ul>" if reasons else "<p>These runs give no reason that would decide.</p>"
    return f'<section class="{mode}"><h3>{escape(title)}</h3>{body}</section>'


def _differences(summary: Summary) -> str:
    rows = [
        (
            escape(each.concern),
            escape(each.stream),
            escape(each.mesh),
            '<span class="equal">the same</span>' if each.equal else '<span class="differs">differs</span>',
        )
        for each in summary.plan.differences
    ]
    arms = [
        (escape(arm.name), escape(arm.mode), escape(arm.title), escape(arm.flow), escape(arm.bank))
        for arm in summary.plan.arms
    ]
    return f"""<section id="differences"><h2>What differs before anything fails</h2>
<p class="reading">Read from the settings that were in force. What differs here can cause any difference below.</p>
{_table(("concern", "stream", "mesh", ""), rows)}
<h3>The arms</h3>
{_table(("arm", "mode", "what it is", "flow of an order", "bank"), arms)}
</section>"""


def _plot(plot: Plot, rendered: Mapping[str, Rendered]) -> str:
    pictures = "\n".join(_picture(picture, rendered[picture.name].svg) for picture in plot.pictures)
    return f"""<section data-plot="{plot.name}"><h2>{escape(plot.name)} {escape(plot.title)}</h2>
<p class="reading">{escape(plot.reading)}</p>
{pictures}
</section>"""


def _picture(picture: Picture, svg: str) -> str:
    rows = [tuple(map(escape, row)) for row in picture.rows]
    return f"""<figure id="{picture.name}"><figcaption>{escape(picture.caption)}</figcaption>
<div class="wide" tabindex="0">{svg}</div>
<details><summary>The numbers behind it</summary>{_table(picture.columns, rows)}</details>
</figure>"""


def _omissions(omissions: Sequence[Omission]) -> str:
    if not omissions:
        return ""
    rows = [(escape(each.name), escape(each.title), escape(each.reason)) for each in omissions]
    return f"""<section id="omitted"><h2>Plots that these runs can't fill</h2>
{_table(("plot", "what it would show", "why it is left out"), rows)}</section>"""


def _hypotheses(findings: Sequence[Finding]) -> str:
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in VERDICTS}
    told = ", ".join(f'<span class="{verdict}">{count} {verdict}</span>' for verdict, count in counts.items())
    spoken = [finding for finding in findings if finding.verdict != "silent"]
    silent = [finding for finding in findings if finding.verdict == "silent"]
    return f"""<section id="hypotheses"><h2>Hypotheses</h2>
<p class="reading">Each claim with what would refute it, fixed before anything was measured: {told}. A claim is
undecided while its interval reaches across the bound, or one seed gives none.</p>
{_table(("", "claim", "refuted if", "verdict", "figure"), map(_finding, spoken))}
<details><summary>{len(silent)} claims of which these runs say nothing</summary>
{_table(("", "claim", "refuted if", "verdict", "what is missing"), map(_finding, silent))}</details>
</section>"""


def _finding(finding: Finding) -> tuple[str, ...]:
    verdict = f'<span class="{finding.verdict}">{finding.verdict}</span>'
    return escape(finding.name), escape(finding.claim), escape(finding.falsifier), verdict, escape(finding.figure)


def _figures(summary: Summary) -> str:
    columns = (
        *("arm", "fault", "seeds", "offered", "right", *HARMS.values(), "available", "p50", "p99", "recovery"),
        *("blast radius", "collateral", "attempts/order", "repeated work", "errors seen", "CPU/order"),
    )
    rows = [_cell(cell) for cell in summary.cells]
    return f"""<section id="figures"><h2>All figures</h2>
<p class="reading">Each with its 95 % interval over the seeds, if there are several. <code>figures.json</code> beside
this page has them in full, with those of every run.</p>
{_table(columns, rows)}</section>"""


def _cell(cell: Cell) -> tuple[str, ...]:
    if cell.state != "measured":
        text = {"na": "n/a", "invalid": "invalid", "missing": "not run"}[cell.state]
        return (cell.arm, cell.fault, f"{text}: {escape(cell.reason)}")
    found = cell.truth.counted if cell.truth else {}
    harm = [str(found.get(name, NOTHING)) for name in HARMS]
    shown = [text if text in ("0", NOTHING) else f'<span class="harm">{text}</span>' for text in harm]
    recovery = interval(cell.recovery_s, seconds)
    if cell.unrecovered:
        recovery = f"not in {cell.unrecovered} of {cell.seeds}"
    return (
        escape(cell.arm),
        escape(cell.fault),
        str(cell.seeds),
        f"{cell.counts.offered:,}",
        f"{cell.counts.right:,}",
        *shown,
        interval(cell.availability, percent),
        interval(cell.p50_ms, milliseconds),
        interval(cell.p99_ms, milliseconds),
        recovery,
        interval(cell.blast, percent),
        interval(cell.blast_collateral, percent),
        interval(cell.amplification, number),
        interval(cell.wasted, number),
        interval(cell.effective_error_rate, percent),
        interval(cell.cpu_ms_per_confirmed, milliseconds),
    )


def _validity(summary: Summary, conclusion: Conclusion) -> str:
    return f"""<section id="validity"><h2>What these figures can't carry</h2>
<ul>{_items([*conclusion.caveats, *summary.plan.threats])}</ul></section>"""


def _method(summary: Summary) -> str:
    plan = summary.plan
    faults = [(escape(fault.name), escape(fault.title), escape(_steps(fault.steps))) for fault in plan.faults]
    facts = {
        "Command": " ".join(plan.command),
        "Functions": f"{plan.app.name}, SHA-256 {plan.app.sha256}: the same file in all arms",
        "Plan": f"SHA-256 {summary.plan_sha256}",
        "Records": f"SHA-256 {summary.records_sha256}, of what sha256sum says of the files of each run",
        **{f"Machine: {name}": str(value) for name, value in plan.machine.items()},
    }
    return f"""<section id="method"><h2>Method</h2>
<p>Requests leave by a schedule, whether the ones before are answered or not, and latencies count from when they were
meant to leave. After the load everything comes to rest; then an oracle that knows nothing of either runtime goes
through the bank's ledger and the final states. Recovery is the first of five consecutive seconds in which 99 % are
answered rightly and the p99 is at most twice that of the same arm without a fault. All figures are computed from the
raw records.</p>
<dl class="facts">{_facts(facts)}</dl>
<h3>The faults</h3>
{_table(("fault", "what happens", "steps"), faults)}</section>"""


def _steps(steps: Iterable[Mapping[str, object]]) -> str:
    return "; ".join(", ".join(f"{name} {value}" for name, value in step.items()) for step in steps) or "none"


# ---- parts


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts.items())


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already. A row that is too short has its last cell reach to the end."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(_row(row, len(columns)) for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], many: int) -> str:
    first, *others = cells
    span = many - len(cells) + 1
    reach = f' colspan="{span}"' if span > 1 else ""
    middle = "".join(f"<td>{cell}</td>" for cell in others[:-1])
    last = f"<td{reach}>{others[-1]}</td>" if others else ""
    return f'<tr><th scope="row">{first}</th>{middle}{last}</tr>'
