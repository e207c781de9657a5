"""The pieces of the report's page: escaped text, tables, panels, and the one file they form."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import vl_convert

from .report_charts import CONFIG, Spec, static_image
from .report_numbers import printable

__all__ = [
    "Column",
    "Page",
    "Section",
    "data_element",
    "details",
    "esc",
    "facts",
    "figure",
    "grid",
    "key",
    "notes",
    "reason_list",
    "table",
]

_MANY_SECTIONS = 6  # more than these are listed at the top with their findings
_STATIC_BUDGET = 1_200_000  # characters: with the bundle, a usual study stays under 3 MB


def esc(value: object) -> str:
    """Return ``value`` as text that is safe in HTML content and in quoted attributes."""
    return html.escape(printable(value), quote=True)


def _script_json(value: object) -> str:
    """Return JSON for a script element: no character in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _columnar(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return rows that share their keys as one list of keys and one list of values a row."""
    names = list(rows[0]) if rows else []
    return {"columns": names, "rows": [[row[name] for name in names] for row in rows]}


@dataclass(frozen=True)
class Section:
    """A headed part of the page; ``body`` is HTML, already escaped."""

    anchor: str
    heading: str
    body: str
    lead: str = ""  # the finding in one sentence, plain text


@dataclass
class Page:
    """The page as it grows: its charts, then its sections."""

    title: str
    meta: str
    version: str
    sections: list[Section] = field(default_factory=list)
    skeletons: list[Spec] = field(default_factory=list)
    charts: dict[str, dict[str, Any]] = field(default_factory=dict)
    n_static: int = 0  # characters of static drawings so far
    scripts: list[str] = field(default_factory=lambda: ["report.js"])  # files of this package
    styles: list[str] = field(default_factory=lambda: ["report.css"])

    def use(self, *, script: str | None = None, style: str | None = None) -> None:
        """Put a further script or style of this package into the page, once."""
        for name, kept in ((script, self.scripts), (style, self.styles)):
            if name is not None and name not in kept:
                kept.append(name)

    def panel(
        self, heading: str, spec: Spec | None, *, absent: str = "", aside: bool = False
    ) -> str:
        """Return the HTML of one chart with its static drawing, or ``absent`` in a box.

        ``heading`` is plain text. The script replaces the drawing by the live chart. A panel that
        lies ``aside`` (in a closed box) has a drawing only while the page is light enough.
        """
        head = f'<div class="head"><h4>{esc(heading)}</h4></div>'
        if spec is None:
            return f'<div class="panel">{head}<p class="absent">{esc(absent)}</p></div>'
        name = f"c{len(self.charts)}"
        skeleton = {k: v for k, v in spec.items() if k != "datasets"}
        if skeleton not in self.skeletons:
            self.skeletons.append(skeleton)
        place = self.skeletons.index(skeleton)
        datasets = {k: _columnar(rows) for k, rows in spec["datasets"].items()}
        self.charts[name] = {"skeleton": place, "datasets": datasets}
        drawing = '<p class="absent static">This chart is drawn by the page\'s script.</p>'
        if not aside or self.n_static < _STATIC_BUDGET:
            source = static_image(spec)
            self.n_static += len(source)
            drawing = f'<img class="static" src="{source}" alt="{esc(heading)}">'
        return f'<div class="panel">{head}<div data-chart="{name}">{drawing}</div></div>'

    def add(self, anchor: str, heading: str, body: str, *, lead: str = "") -> None:
        """Append a section; ``lead`` is what it finds, plain text, also shown in the contents."""
        self.sections.append(Section(anchor, heading, body, lead))

    def to_html(self) -> str:
        """Return the whole page as one self-contained HTML document."""
        folder = files(__package__)
        script = _read_all(self.scripts)
        bundle = _bundle()
        return Template(
            folder.joinpath("report_template.html").read_text(encoding="utf-8")
        ).substitute(
            script_hashes=" ".join(map(_csp_hash, (bundle, script))),
            title=esc(self.title),
            css=_read_all(self.styles),
            meta=esc(self.meta),
            nav="".join(f'<a href="#{s.anchor}">{esc(s.heading)}</a>' for s in self.sections),
            contents=_contents(self.sections),
            main="\n".join(map(_section, self.sections)),
            version=esc(self.version),
            charts=_script_json(
                {"config": CONFIG, "skeletons": self.skeletons, "charts": self.charts}
            ),
            bundle=bundle,
            script=script,
        )


def _section(section: Section) -> str:
    anchor = f'<a class="anchor" href="#{section.anchor}" aria-label="Link to this section">#</a>'
    head = f'<h2 id="{section.anchor}">{esc(section.heading)}{anchor}</h2>'
    lead = f'<p class="lead">{esc(section.lead)}</p>\n' if section.lead else ""
    return f"<section>\n{head}\n{lead}{section.body}\n</section>"


def _contents(sections: Sequence[Section]) -> str:
    """Return a list of the sections with what each finds, where there are many."""
    if len(sections) <= _MANY_SECTIONS:
        return ""
    items = "".join(
        f'<li><a href="#{s.anchor}">{esc(s.heading)}</a>'
        + (f" <span>{esc(s.lead)}</span>" if s.lead else "")
        + "</li>\n"
        for s in sections
    )
    return f'<nav class="contents" aria-label="Contents"><h2>Contents</h2><ol>\n{items}</ol></nav>'


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, in a scope of its own."""
    source: str = vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
    source = (
        source.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")
    )
    return f"(()=>{{{source}\n}})();"


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _read_all(names: Sequence[str]) -> str:
    folder = files(__package__)
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def data_element(name: str, value: object) -> str:
    """Return ``value`` as a JSON element with the id ``name``, for a script of the page to read."""
    return f'<script type="application/json" id="{esc(name)}">{_script_json(value)}</script>'


@dataclass(frozen=True)
class Column:
    """How one column of a table is shown."""

    heading: str
    show: Callable[[Mapping[str, Any]], str]
    kind: str = ""  # "number" aligns right, "long" keeps room for prose


def table(
    columns: Sequence[Column],
    rows: Iterable[Mapping[str, Any]],
    *,
    label: str,
    row_attributes: Sequence[str] | None = None,
) -> str:
    """Return a table that scrolls sideways inside its own box.

    ``row_attributes`` are HTML attributes of the rows, each with a space before it.
    """
    head = "".join(f'<th scope="col"{_class(c)}>{esc(c.heading)}</th>' for c in columns)
    kept = list(rows)
    body = "".join(
        f"<tr{attributes}>"
        + "".join(f"<td{_class(c)}>{esc(c.show(row))}</td>" for c in columns)
        + "</tr>\n"
        for row, attributes in zip(kept, row_attributes or [""] * len(kept), strict=True)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _class(column: Column) -> str:
    return f' class="{column.kind}"' if column.kind else ""


def facts(names: Sequence[str], columns: Mapping[str, Mapping[str, str]], *, label: str) -> str:
    """Return a table with one row per fact and one column per thing (a run, the machine)."""
    heads = "".join(f'<th scope="col">{esc(c)}</th>' for c in columns)
    head = f"<thead><tr><th></th>{heads}</tr></thead>" if len(columns) > 1 else ""
    body = "".join(
        f'<tr><th scope="row">{esc(name)}</th>'
        + "".join(f"<td>{esc(values.get(name) or '–')}</td>" for values in columns.values())
        + "</tr>\n"
        for name in names
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{esc(label)}">'
        f'<table class="facts">{head}<tbody>\n{body}</tbody></table></div>'
    )


def details(summary: str, body: str) -> str:
    """Return ``body`` (HTML) in a box that opens on a click."""
    return f"<details><summary>{esc(summary)}</summary>\n{body}\n</details>"


_SWATCHES = {
    "line": '<path d="M0 6H24" stroke="{c}" stroke-width="2"/>',
    "dashed": '<path d="M0 6H24" stroke="{c}" stroke-width="2" stroke-dasharray="7 3"/>',
    "dotted": '<path d="M0 6H24" stroke="{c}" stroke-width="1.6" stroke-dasharray="2 2"/>'
    '<circle cx="12" cy="6" r="2" fill="{c}"/>',
    "band": '<rect y="1" width="24" height="10" fill="{c}" opacity=".35"/>',
    "circle": '<circle cx="12" cy="6" r="4.5" fill="{c}"/>',
    "triangle-up": '<path d="M12 1.5L17 10.5H7Z" fill="{c}"/>',
    "cross": '<path d="M10 1h4v3h3v4h-3v3h-4V8H7V4h3Z" fill="{c}"/>',
    "square": '<rect x="8" y="2" width="8" height="8" fill="{c}"/>',
    "diamond": '<path d="M12 0.5L17 6L12 11.5L7 6Z" fill="{c}"/>',
}


def _swatch(kind: str, colour: str) -> str:
    """Return a small drawing of a mark for the key; kinds joined by ``+`` lie on each other."""
    marks = "".join(_SWATCHES[k].format(c=colour) for k in kind.split("+"))
    return f'<svg width="24" height="12" viewBox="0 0 24 12" aria-hidden="true">{marks}</svg>'


def key(items: Sequence[tuple[str, str, str]]) -> str:
    """Return the key of a figure from (kind, colour, text) items."""
    entries = "".join(f"<li>{_swatch(k, c)}{esc(text)}</li>" for k, c, text in items)
    return f'<ul class="key">{entries}</ul>'


def grid(panels: Sequence[str], *, width: str) -> str:
    """Return panels side by side, each at least ``width`` wide, in as many columns as fit."""
    return f'<div class="grid" style="--panel:{width}">{"".join(panels)}</div>'


def figure(caption: str, legend: str, body: str) -> str:
    """Return a figure: how to read it, its key, its panels (``legend`` and ``body`` are HTML)."""
    return f"<figure><figcaption>{esc(caption)}</figcaption>{legend}{body}</figure>"


def notes(*, controls: str, caveat: str) -> str:
    """Return what a figure's controls say and what it does not show, from plain text."""
    return (
        f'<p class="controls"><strong>Controls.</strong> {esc(controls)}</p>'
        f'<p class="caveat"><strong>Mind.</strong> {esc(caveat)}</p>'
    )


def reason_list(reasons: Sequence[str]) -> str:
    """Return why numbers are missing, each reason once, or an empty string."""
    counted = {r: reasons.count(r) for r in dict.fromkeys(reasons)}
    items = "".join(
        f"<li>{esc(r)}{f' ({n} times)' if n > 1 else ''}</li>" for r, n in counted.items()
    )
    return f'<div class="note"><p>Not estimated:</p><ul>{items}</ul></div>' if items else ""
