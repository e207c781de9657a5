"""Parts of the report's page that its reader can filter: tables and lists of items.

Filtering is done by the page's script. Without scripts everything shows and no control does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .report_page import Column, esc, table

__all__ = ["Filter", "Item", "filterable", "filterable_table"]

_PAGE = 100  # rows or items that show at first; a button shows more


@dataclass(frozen=True)
class Filter:
    """A choice over the rows of a table: its heading, and a row's value."""

    heading: str
    value: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Item:
    """One thing of a filterable list: its HTML (escaped), and its values by filter heading."""

    body: str
    values: Mapping[str, str]


def filterable_table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    *,
    label: str,
    filters: Sequence[Filter] = (),
    search: bool = True,
    page_size: int = _PAGE,
) -> str:
    """Return a table above which its reader chooses values and searches text.

    Parameters
    ----------
    columns
        How each column is shown.
    rows
        The rows, in order.
    label
        What the table holds; names its region and its CSV.
    filters
        One choice each; a filter with a single value over all rows is left out.
    search
        Whether there is a box that searches the rows' text.
    page_size
        How many matching rows show at first.
    """
    kept, values = _choices(filters, rows)
    marks = [_marks([f.value(row) for f in kept]) for row in rows]
    body = table(columns, rows, label=label, row_attributes=marks)
    return _box(
        body,
        label=label,
        headings=[f.heading for f in kept],
        values=values,
        search=search,
        page_size=page_size,
    )


def filterable(
    items: Sequence[Item],
    *,
    label: str,
    filters: Sequence[str] = (),
    search: bool = True,
    width: str = "100%",
    page_size: int = _PAGE,
) -> str:
    """Return a list of items above which its reader chooses values and searches text.

    Parameters
    ----------
    items
        The things, in order; charts inside are drawn when they show.
    label
        What the list holds.
    filters
        Headings of ``Item.values`` to choose by; one with a single value is left out.
    search
        Whether there is a box that searches the items' text.
    width
        The least width of an item in CSS; as many columns as fit are made.
    page_size
        How many matching items show at first.
    """
    choices = [Filter(name, partial(_value, name)) for name in filters]
    kept, values = _choices(choices, [item.values for item in items])
    body = "".join(
        f"<div class='item'{_marks([f.value(item.values) for f in kept])}>{item.body}</div>\n"
        for item in items
    )
    return _box(
        f'<div class="grid" style="--panel:{esc(width)}">{body}</div>',
        label=label,
        headings=[f.heading for f in kept],
        values=values,
        search=search,
        page_size=page_size,
    )


def _value(name: str, values: Mapping[str, Any]) -> str:
    return str(values.get(name, ""))


def _choices(
    filters: Sequence[Filter], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Filter], list[list[str]]]:
    """Return the filters that leave a choice, and the values of each in the rows' order."""
    found = [(f, list(dict.fromkeys(f.value(row) for row in rows))) for f in filters]
    chosen = [(f, values) for f, values in found if len(values) > 1]
    return [f for f, _ in chosen], [values for _, values in chosen]


def _marks(values: Sequence[str]) -> str:
    """Return the attributes by which the script knows a row: its values, by place."""
    return " data-item" + "".join(f' data-v{i}="{esc(v)}"' for i, v in enumerate(values))


def _box(
    body: str,
    *,
    label: str,
    headings: Sequence[str],
    values: Sequence[Sequence[str]],
    search: bool,
    page_size: int,
) -> str:
    """Return ``body`` with its controls, which the script shows and serves."""
    controls = "".join(
        f"<label>{esc(heading)} <select data-filter='{i}'><option value=''>all</option>"
        + "".join(f'<option value="{esc(v)}">{esc(v) or "–"}</option>' for v in found)
        + "</select></label>"
        for i, (heading, found) in enumerate(zip(headings, values, strict=True))
    )
    if search:
        controls += "<label>search <input type='search' data-search autocomplete='off'></label>"
    return (
        f'<div class="filterable" data-page="{int(page_size)}">'
        f'<div class="filters" role="group" aria-label="{esc(label)}: filters" hidden>{controls}'
        f'<span class="count" role="status"></span></div>{body}'
        '<button type="button" class="more" hidden>Show more</button></div>'
    )
