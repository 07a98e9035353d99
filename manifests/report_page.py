"""The report as one HTML page: tables written out here, everything that moves left to the page's script.

All that comes from outside (paths, titles, messages) is escaped; and should that fail, the page's policy runs no script
but its own, by hash, and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifests.accounting import Account, Footage, SourceSet, Trouble
from manifests.distributions import PAPER
from manifests.page_data import PageData, Unmeasured
from manifests.selection import Funnel

_FOLDER = Path(__file__).parent / "page"
_SCRIPTS = ("columns.js", "panels.js", "sheet.js", "start.js")


@dataclass(frozen=True)
class Report:
    """All that a page shows. chosen: the name of the selection or recipe; funnel: its; None, "" without one."""

    output: str
    made: str
    account: Account
    sets: Sequence[SourceSet]
    troubles: Sequence[Trouble]
    data: PageData
    chosen: str = ""
    about: str = ""
    funnel: Funnel | None = None


def render(report: Report) -> str:
    """The page."""
    script = '(() => {\n"use strict";\n' + "".join(_read(name) for name in _SCRIPTS) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = {
        "funnel": ("What became of it", _funnels(report)),
        "choose": ("Distributions", _distributions(report.data)),
        "sheet-section": ("Clips to look at", _SHEET if report.data.facts["cards"] else ""),
        "sources": ("Sources", _sources(report.sets, bool(report.chosen))),
        "failures": ("Failures", _failures(report.troubles)),
        "unmeasured": ("Not measured", _unmeasured(report.data.unmeasured)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    return _fill(
        _read("template.html"),
        {
            "script_hash": f"sha256-{digest}",
            "title": _text(f"talkreel report: {report.output}"),
            "style": _read("style.css"),
            "heading": _text(report.output),
            "made": _text(report.made),
            "navigation": " ".join(f'<a href="#{name}">{title}</a>' for name, (title, _) in shown.items()),
            "figures": _figures(report),
            "sections": "\n".join(
                f'<section id="{name}"><h2>{title}</h2>\n{content}</section>'
                for name, (title, content) in shown.items()
            ),
            "footer": "<p>All times are of footage.</p>",
            "reset": "Back to the recipe" if report.chosen else "No bounds",
            "facts": _json(report.data.facts),
            "block": report.data.block,
            "script": script,
        },
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """Every {{name}} of the template by its part, in one pass: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _text(words: object) -> str:
    return html.escape(str(words))


def _json(facts: object) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# Numbers ---------------------------------------------------------------------------------------------------------


def _time(seconds: float, whole: float | None = None) -> str:
    """Footage in the unit that fits the whole of a table, so that its rows compare."""
    size = seconds if whole is None else whole
    if size < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if size < 7200 else f"{seconds / 3600:,.1f} h"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole > 0 else "–"


def _less(amount: float, words: str) -> str:
    """An amount that is taken away; nothing is taken faintly."""
    return f"−{words}" if amount > 0 else '<span class="zero">0</span>'


def _figures(report: Report) -> str:
    account = report.account
    figures = [
        ("Inputs", f"{account.files:,}", "files"),
        ("Footage looked at", _time(account.seconds), ""),
        ("Clips", f"{account.clips:,}", _time(account.clip_seconds)),
        ("Scored", f"{account.statuses.get('scored', 0):,}", "clips"),
    ]
    if report.funnel is not None:
        figures.append(("Chosen", f"{report.funnel.chosen_clips:,}", _time(report.funnel.chosen_hours * 3600)))
    return "".join(
        f"<div><dt>{name}</dt><dd>{value}{f' <small>{_text(more)}</small>' if more else ''}</dd></div>"
        for name, value, more in figures
    )


# Funnels ---------------------------------------------------------------------------------------------------------


def _bar(*pieces: tuple[str, float, float]) -> str:
    """Pieces of a bar as a picture: class, start and length as shares of the whole."""
    drawn = "".join(
        f'<rect class="{kind}" x="{100 * start:.3f}" y="{4 if kind == "alone" else 1}" '
        f'width="{100 * length:.3f}" height="{6 if kind == "alone" else 12}"/>'
        for kind, start, length in pieces
        if length > 0
    )
    return (
        '<td class="picture"><svg viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f"{drawn}</svg></td>"
    )


def _row(name: str, *cells: str, kind: str = "") -> str:
    body = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    return f'<tr{f" class={kind!r}" if kind else ""}><th scope="row">{name}</th>{body}</tr>'


def _table(heads: Sequence[str], rows: Iterable[str], words: int = 0) -> str:
    """A table; words: how many columns after the first hold words, not numbers."""
    kinds = ["", *[' class="text"'] * words, *[""] * len(heads)]
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(heads, kinds, strict=False))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>\n'


def _funnels(report: Report) -> str:
    parts = [f"<div><h3>Curation</h3>{_curation(report.account)}</div>"]
    if report.funnel is not None:
        about = f'<p class="about">{_text(report.about)}</p>' if report.about else ""
        title = f"Selection: {_text(report.chosen)}"
        parts.append(f"<div><h3>{title}</h3>{about}{_selection(report.funnel)}</div>")
    return f'<div class="{"two" if len(parts) > 1 else "one"}">{"".join(parts)}</div>'


def _curation(account: Account) -> str:
    """Seconds from the footage looked at to the clips, each loss where it takes from what was left."""
    whole = account.seconds or 1e-9
    rows = [_row("looked at", _bar(("whole", 0, 1)), _time(account.seconds, whole), "100.0 %")]
    left = account.seconds
    losses = [(_text(reason), seconds) for reason, seconds in account.lost.items()]
    if account.unfinished:
        losses.insert(0, (f"failed on the way ({account.unfinished:,} files)", account.unfinished_seconds))
    for name, seconds in losses:
        left -= seconds
        bar = _bar(("whole", 0, left / whole), ("lost", left / whole, seconds / whole))
        rows.append(_row(name, bar, _less(seconds, _time(seconds, whole)), _share(seconds, whole)))
    bar = _bar(("clips", 0, account.clip_seconds / whole))
    share = _share(account.clip_seconds, whole)
    rows.append(_row(f"clips ({account.clips:,})", bar, _time(account.clip_seconds, whole), share, kind="sum"))
    notes = [f"{account.files:,} inputs"]
    if account.unusable:
        notes.append(f"{account.unusable:,} cannot be opened or scanned")
    if account.duplicates:
        notes.append(f"{account.duplicates:,} with the content of another")
    statuses = ", ".join(f"{count:,} {_text(status)}" for status, count in sorted(account.statuses.items()))
    notes.append(f"clips: {statuses or 'none'}")
    return _table(("", "", "footage", "share"), rows) + f'<p class="faint">{"; ".join(notes)}.</p>'


def _selection(funnel: Funnel) -> str:
    """Hours from the candidates to the chosen; outlined: what a bound would remove on its own."""
    whole = funnel.hours or 1e-9
    unit = funnel.hours * 3600
    rows = [_row("candidates", _bar(("whole", 0, 1)), f"{funnel.clips:,}", _time(unit), "", "")]
    left = funnel.hours
    for lost in funnel.lost:
        left -= lost.hours
        bar = _bar(
            ("whole", 0, left / whole),
            ("lost", left / whole, lost.hours / whole),
            ("alone", 1 - lost.alone_hours / whole, lost.alone_hours / whole),
        )
        name = f"<code>{_text(lost.bound)}</code>"
        if lost.unmeasured:
            name += f' <span class="faint">{lost.unmeasured:,} without a value</span>'
        time = _less(lost.hours, _time(lost.hours * 3600, unit))
        alone = _less(lost.alone_clips, f"{lost.alone_clips:,}")
        rows.append(_row(name, bar, _less(lost.clips, f"{lost.clips:,}"), time, alone))
    chosen = _bar(("clips", 0, funnel.chosen_hours / whole))
    time = _time(funnel.chosen_hours * 3600, unit)
    rows.append(_row("chosen", chosen, f"{funnel.chosen_clips:,}", time, "", kind="sum"))
    note = '<p class="faint">Filled: lost here, of what the bounds above left. Outlined, and “alone”: on its own.</p>'
    return _table(("", "", "clips", "footage", "alone"), rows) + note


# Distributions and clips: filled in by the script ----------------------------------------------------------------

_DISTRIBUTIONS = """<p class="about">Each histogram counts clips: pale before, coloured after the bounds. Drag
the handles, or move them with the arrow keys; the bar below tells at once what is left. A clip without a number does
not keep a bound on it. Values far out are counted in the first or last bar.</p>
<noscript><p>The distributions, the sliders and the contact sheet need JavaScript.</p></noscript>
<fieldset class="chips" id="sets"><legend>Of</legend></fieldset>
<ul class="rules" id="rules"></ul>
<h3>What the paper shows of its data (Fig. 5b)</h3>
<div class="panels paper" id="paper"></div>
{missing}<div id="panels"></div>
"""
_GAP = '<p class="faint">{} not measured: <a href="#unmeasured">why</a>.</p>\n'
_NO_CLIPS = """<p class="about">There are no clips.</p>
<noscript></noscript><div hidden><fieldset id="sets"></fieldset><ul id="rules"></ul><div id="paper"></div>
<div id="panels"></div></div>
"""
_SHEET = """<p class="about">A sample, half of what is kept and half of what is dropped where there are both, spread
along one metric. Hover to see three seconds move, click to hear them too. Yellow: the face the clip is bound to;
dashed: others; red, green, blue:
to the subject's left, up and forward.</p>
<div class="sheetbar">
<label>Sort by <select id="sort"></select></label>
<button id="way" type="button" aria-pressed="true">greatest first</button>
<label>Show <select id="only"><option value="all">all</option><option value="kept">kept</option>
<option value="dropped">dropped</option></select></label>
</div>
<div class="sheet" id="sheet"></div>
<p id="none" hidden>None of the clips shown here.</p>
"""


def _distributions(data: PageData) -> str:
    if not data.facts["clips"]:
        return _NO_CLIPS
    gone = [found.metric.name for found in data.unmeasured if found.metric.name in PAPER]
    missing = _GAP.format(", ".join(f"<code>{name}</code>" for name in gone)) if gone else ""
    return _DISTRIBUTIONS.format(missing=missing)


# Sources, failures, gaps -----------------------------------------------------------------------------------------


def _sources(sets: Sequence[SourceSet], chosen: bool) -> str:
    if not sets:
        return '<p class="about">Nothing has been curated yet.</p>'
    whole = max(found.whole.seconds for found in sets)
    heads = ("source set", "", "looked at", "clips", "in clips", *(("chosen",) if chosen else ()))
    table = _table(heads, (_source(found.whole, whole, whole, chosen) for found in sets))
    lists = []
    for found in sets:
        most = max(source.seconds for source in found.sources)
        rows = [_source(source, most, found.whole.seconds, chosen) for source in found.sources]
        more = f'<p class="faint">… and {found.others:,} more.</p>' if found.others else ""
        sources = len(found.sources) + found.others
        count = f"{sources:,} source{'s' if sources != 1 else ''}"
        lists.append(
            f"<details><summary>{_text(found.whole.name or 'without a set')}: {count}</summary>"
            f"{_table(('source', *heads[1:]), rows)}{more}</details>"
        )
    return table + "".join(lists)


def _source(source: Footage, whole: float, unit: float, chosen: bool) -> str:
    whole = whole or 1e-9
    pieces = [("whole", 0.0, source.seconds / whole), ("clips", 0.0, source.clip_seconds / whole)]
    if chosen:
        pieces[1] = ("before", 0.0, source.clip_seconds / whole)
        pieces[0] = ("faintest", 0.0, source.seconds / whole)
        pieces.append(("clips", 0.0, source.chosen_seconds / whole))
    times = [_time(source.seconds, unit), f"{source.clips:,}", _time(source.clip_seconds, unit)]
    if chosen:
        times.append(_time(source.chosen_seconds, unit))
    name = f'<span title="{_text(source.path)}">{_text(source.name or "without a set")}</span>'
    return _row(name, _bar(*pieces), *times)


def _failures(troubles: Sequence[Trouble]) -> str:
    if not troubles:
        return '<p class="about">None: everything that was asked for could be done.</p>'
    rows = []
    for trouble in troubles:
        examples = "".join(
            f"<p><code>{_text(failure.path or failure.key)}</code><br>{_text(failure.message)}</p>"
            + (f"<pre>{_text(failure.log[-1500:])}</pre>" if failure.log else "")
            for failure in trouble.examples
        )
        what = f"{_text(trouble.message)}<details><summary>examples</summary>{examples}</details>"
        cells = (f'<td class="text">{_text(trouble.stage)}</td>', f'<td class="text">{_text(trouble.error)}</td>')
        rows.append(_row(what, *cells, f"{trouble.count:,}"))
    return _table(("reason", "stage", "kind", "count"), rows, words=2)


def _unmeasured(unmeasured: Sequence[Unmeasured]) -> str:
    """The metrics that no clip has, with their reasons; empty where there are none."""
    if not unmeasured:
        return ""
    rows = []
    for found in unmeasured:
        why = "; ".join(f"{_text(reason)} ({count:,})" for reason, count in found.reasons) or "no reason is recorded"
        name = f"<code>{_text(found.metric.name)}</code>"
        rows.append(_row(name, f'<td class="text">{_text(found.metric.meaning)}</td>', f'<td class="text">{why}</td>'))
    about = '<p class="about">Columns without a single number: no histogram, and no clip keeps a bound on them.</p>'
    return about + _table(("metric", "meaning", "why (clips)"), rows, words=2)
