"""The figures and tables of a paper: PDF, LaTeX, and the CSV of what each shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..schemas import StorageError
from . import paper_interventions, paper_numbers, paper_probes, paper_steering
from .paper_latex import escape, figure_float
from .paper_parts import LeftOut, PaperPart, PaperTables, paper_tables
from .paper_style import DOUBLE, paper_style, require_matplotlib, save_pdf

if TYPE_CHECKING:
    from .report import ReportInput

__all__ = ["PARTS", "PaperFiles", "write_paper"]

# By the name of its files, in the order in which index.tex shows them.
PARTS: dict[str, Callable[[PaperTables], PaperPart | LeftOut]] = {
    "key-numbers": paper_numbers.key_numbers,
    "auroc": paper_probes.auroc,
    "ablation": paper_probes.ablation,
    "transfer": paper_probes.transfer,
    "patching": paper_interventions.patching,
    "mediation": paper_interventions.mediation,
    "matched": paper_interventions.matched,
    "doses": paper_steering.doses,
    "steering-transfer": paper_steering.steering_transfer,
    "hypotheses": paper_numbers.hypotheses,
}
_KINDS = (".pdf", ".tex", ".csv")
_HEAD = r"""% Figures and tables of a study, for a document that loads them as packages:
%   \usepackage{booktabs,graphicx} and, for pdflatex, \usepackage[T1]{fontenc}
% \input{index} takes all of them, \input{auroc} one. The .csv beside each holds what it shows.
"""


@dataclass(frozen=True)
class PaperFiles:
    """What was written, by part, and why other parts were left out."""

    folder: Path
    written: dict[str, list[Path]]
    left_out: dict[str, str]


def write_paper(results: ReportInput, folder: Path) -> PaperFiles:
    """Write the figures and tables of a study for a paper; return what was written.

    A figure is ``NAME.pdf`` (vectors, TrueType fonts, one or two columns wide, no title), a table
    ``NAME.tex``; each has its caption in ``NAME.tex`` and what it shows in ``NAME.csv``.
    ``index.tex`` takes all of them and names those that were left out, with the reason. The same
    results give the same bytes. Files of parts that have nothing to show any more are removed.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    InvalidInputError
        If a table lacks a column that a figure needs.
    StorageError
        If the folder cannot be written.
    """
    require_matplotlib()
    tables = paper_tables(results)
    folder = Path(folder)
    written: dict[str, list[Path]] = {}
    left_out: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with paper_style():
            for name, make in PARTS.items():
                found = make(tables)
                if isinstance(found, LeftOut):
                    left_out[name] = found.reason
                    for kind in _KINDS:
                        (folder / f"{name}{kind}").unlink(missing_ok=True)
                else:
                    written[name] = _write_part(found, folder, name)
        _write_text(_index(results.title, written, left_out), folder / "index.tex")
    except OSError as err:
        msg = f"{folder}: the paper's files cannot be written: {err.strerror or err}"
        raise StorageError(msg) from err
    return PaperFiles(folder, written, left_out)


def _write_part(part: PaperPart, folder: Path, name: str) -> list[Path]:
    tex, csv = folder / f"{name}.tex", folder / f"{name}.csv"
    paths = [tex, csv]
    if part.draw is not None:
        figure = part.draw(part.rows)
        wide = bool(figure.get_figwidth() >= DOUBLE)
        fresh = folder / f".{name}.{os.getpid()}.part"
        save_pdf(figure, fresh)
        fresh.replace(folder / f"{name}.pdf")
        paths.insert(0, folder / f"{name}.pdf")
        _write_text(figure_float(name, caption=part.caption, wide=wide), tex)
    elif part.tabular is not None:
        _write_text(part.tabular(part.caption), tex)
    part.rows.to_csv(csv, index=False, lineterminator="\n")
    return paths


def _index(title: str, written: dict[str, list[Path]], left_out: dict[str, str]) -> str:
    lines = [_HEAD + f"% {escape(title)}"]
    lines += [rf"\input{{{name}}}" for name in written]
    lines += [f"% left out: {name}: {escape(reason)}" for name, reason in left_out.items()]
    return "\n".join(lines) + "\n"


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
