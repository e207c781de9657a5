"""LaTeX of a paper: escaping, booktabs tables, floats."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .report_numbers import printable

__all__ = ["escape", "figure_float", "table_float"]

# What pdflatex does not take as it stands, in the fonts that every installation has.
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "%": r"\%",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"''",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # at the start of a line it would be an argument of the line break before it
    "]": "{]}",
    "*": "{*}",
    "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{DEGREE SIGN}": r"$^\circ$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\le$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\ge$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{PRIME}": r"$'$",
    "\N{DOUBLE VERTICAL LINE}": r"$\Vert$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
    "\N{GREEK SMALL LETTER BETA}": r"$\beta$",
    "\N{GREEK SMALL LETTER RHO}": r"$\rho$",
    "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$",
    "\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
}
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\.?\d)")


def escape(text: object) -> str:
    """Return text that LaTeX prints as it stands: nothing in it is a command.

    Signs of numbers become minus signs, and hyphens in a row stay hyphens. Letters outside
    Latin are passed on, which LuaLaTeX and XeLaTeX set in a font that has them.
    """
    signed = _NEGATIVE.sub("\N{MINUS SIGN}", printable(text).replace("\n", " "))
    out = "".join(_SPECIAL.get(character, character) for character in _part_hyphens(signed))
    return out.replace("\x00", "{}")


def _part_hyphens(text: str) -> str:
    """Put a mark between hyphens, which LaTeX would draw together to a dash."""
    return re.sub(r"-(?=-)", "-\x00", text)


def table_float(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    align: str,
    caption: str,
    label: str,
) -> str:
    r"""Return a ``table*`` of booktabs lines; cells and headings are escaped here, captions not.

    ``align`` is LaTeX's, one letter or ``p{...}`` per column.
    """
    lines = [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            r"\small",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join(escape(name) for name in header) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def figure_float(name: str, *, caption: str, wide: bool) -> str:
    """Return a float that includes the file ``name.pdf``, over both columns where it is wide."""
    kind = "figure*" if wide else "figure"
    return "\n".join(
        [
            rf"\begin{{{kind}}}[t]",
            r"\centering",
            rf"\includegraphics[width=\{'textwidth' if wide else 'columnwidth'}]{{{name}.pdf}}",
            rf"\caption{{{caption}}}",
            rf"\label{{fig:{name}}}",
            rf"\end{{{kind}}}",
            "",
        ]
    )
