"""The paper's figures show their tables, its LaTeX prints what stands in the data."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader

from actlake.analyze import paper_interventions, paper_probes, paper_steering
from actlake.analyze.paper import PARTS, write_paper
from actlake.analyze.paper_latex import escape
from actlake.analyze.paper_parts import paper_tables
from actlake.analyze.paper_style import DOUBLE, SINGLE, paper_style
from actlake.analyze.report_numbers import printable
from actlake.cli import cli
from actlake.schemas import MissingDependencyError
from tests.analyze.paper_data import (
    RUNS,
    paper_input,
    patching,
    renamed,
    values_of,
)
from tests.analyze.report_data import realistic_input, small_input

FIGURES = [name for name in PARTS if name not in {"key-numbers", "hypotheses"}]
HOSTILE = r"a_b%c$d \input{x} & #1 ~^ [y] *-- <script> α−1"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_paper(paper_input(), tmp_path_factory.mktemp("paper"))


def test_every_part_is_written_with_what_it_shows(written):
    assert list(written.written) == list(PARTS)
    assert not written.left_out
    there = {path.name for path in written.folder.iterdir()}
    names = {f"{name}.{kind}" for name in PARTS for kind in ("tex", "csv")}
    assert there == names | {f"{name}.pdf" for name in FIGURES} | {"index.tex"}
    for name in PARTS:
        assert len(pd.read_csv(written.folder / f"{name}.csv")) > 0, name


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_one_page_of_vectors_with_its_fonts_inside(written, name):
    (page,) = PdfReader(written.folder / f"{name}.pdf").pages
    assert float(page.mediabox.width) / 72 == pytest.approx(DOUBLE, abs=0.01)
    assert float(page.mediabox.height) / 72 < 9  # it fits a page
    for font in page["/Resources"]["/Font"].values():
        (inner,) = [f.get_object() for f in font.get_object()["/DescendantFonts"]]
        assert inner["/Subtype"] == "/CIDFontType2"  # TrueType
        assert "/FontFile2" in inner["/FontDescriptor"].get_object()
    assert not page.images
    text = page.extract_text()
    assert all(run in text for run in RUNS) or name == "transfer"


def test_one_model_takes_one_column(tmp_path):
    results = small_input(tables={"patching": patching().query("run == 'llama-organism'")})
    done = write_paper(results, tmp_path)
    for name in ("auroc", "patching", "doses"):
        (page,) = PdfReader(tmp_path / f"{name}.pdf").pages
        assert float(page.mediabox.width) / 72 == pytest.approx(SINGLE, abs=0.01)
        assert r"\columnwidth" in (tmp_path / f"{name}.tex").read_text()
        assert name in done.written


def test_the_same_results_give_the_same_bytes_in_every_process(written, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "import matplotlib; matplotlib.rcParams['lines.linewidth'] = 9\n"
        "from actlake.analyze.paper import write_paper\n"
        "from tests.analyze.paper_data import paper_input\n"
        "write_paper(paper_input(), Path(sys.argv[1]))\n"
    )
    env = os.environ | {"PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env,
                   cwd=Path(__file__).parents[2])  # fmt: skip
    for path in written.folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    for name in FIGURES:
        info = PdfReader(tmp_path / f"{name}.pdf").metadata
        assert set(info) == {"/Creator", "/Producer"}


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path):
    with mpl.rc_context({"lines.linewidth": 7, "pdf.fonttype": 3}):
        write_paper(small_input(), tmp_path)
        assert (mpl.rcParams["lines.linewidth"], mpl.rcParams["pdf.fonttype"]) == (7, 3)


# -- what the figures show


def test_the_curves_of_a_figure_are_the_probes_of_the_quoted_pool(written):
    shown = pd.read_csv(written.folder / "auroc.csv")
    results = paper_input()
    rows = results.rows[(results.rows.analysis == "probe") & (results.rows.metric == "auroc")]
    rows = rows[rows.pool == "mean_response"]
    assert len(shown) == len(rows)
    keys = ["run", "subset", "method", "layer"]
    both = shown.merge(rows, on=keys, suffixes=("", "_of_probe"), validate="one_to_one")
    np.testing.assert_allclose(both.estimate, both.estimate_of_probe)
    null = results.null[results.null.pool == "mean_response"]
    band = shown.merge(null, on=["run", "subset", "layer"], validate="many_to_one")
    np.testing.assert_allclose(band.random_low, band.q025)
    np.testing.assert_allclose(band.random_max, band["max"])


@pytest.mark.parametrize(
    ("make", "keep", "x"),
    [
        (paper_probes.auroc, {"subset": "all", "method": "logistic"}, "depth"),
        (paper_interventions.mediation, {"mediator": "coordinate"}, "layer"),
        (paper_interventions.matched, {"what": "steer"}, "layer"),
        (paper_steering.doses, {"outcome": "effect", "direction": "diff_means"},
         "alpha_separation"),
    ],
)  # fmt: skip
def test_a_line_of_a_figure_is_a_series_of_its_table(make, keep, x):
    part = make(paper_tables(paper_input()))
    with paper_style():
        figure = part.draw(part.rows)
    for i, run in enumerate(RUNS):
        rows = part.rows[part.rows["run"] == run]
        for column, value in keep.items():
            rows = rows[rows[column] == value]
        wanted = rows.sort_values(x)[[x, "estimate"]].to_numpy(dtype=float)
        drawn = [values_of(line) for line in figure.axes[i].get_lines()]
        found = [np.column_stack(line) for line in drawn if len(line[0]) == len(wanted)]
        assert any(np.allclose(line, wanted) for line in found), run


def test_the_cells_of_a_heat_map_are_its_table_the_first_row_on_top():
    part = paper_interventions.patching(paper_tables(paper_input()))
    with paper_style():
        figure = part.draw(part.rows)
    assert set(part.rows["unit"]) == {"share"}
    own = part.rows[(part.rows["run"] == RUNS[0]) & (part.rows["arm"] == "full")]
    cells = own.pivot(index="position", columns="layer", values="value")
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    drawn = axes.collections[0].get_array().reshape(cells.shape)
    np.testing.assert_allclose(drawn, cells.loc[labels].to_numpy())
    top, bottom = axes.transData.transform([(0, 0), (0, 1)])[:, 1]
    assert top > bottom


def test_shares_of_almost_nothing_are_shown_as_the_effects_themselves():
    tables = {"patching": patching(small=True)}
    part = paper_interventions.patching(paper_tables(realistic_input(tables=tables)))
    assert set(part.rows["unit"]) == {"nats"}
    assert "in nats" in part.caption
    np.testing.assert_allclose(part.rows["value"].max(), 0.6 * 3 / 4)


def test_a_carried_probe_is_shown_at_the_quoted_layer_beside_its_controls(written):
    shown = pd.read_csv(written.folder / "transfer.csv")
    assert set(shown.pool) == {"mean_response"}
    quoted = {view.run: view.layer for view in paper_tables(paper_input()).views}
    assert shown.groupby("run").layer.unique().map(list).to_dict() == {
        run: [layer] for run, layer in quoted.items()
    }
    panels = list(dict.fromkeys(shown.panel))
    assert panels[0] == "ridge map"
    assert set(panels[1:]) == {
        "trained in the target", "random source direction, same map", "bag of words",
    }  # fmt: skip


def test_random_words_are_shown_as_a_change_too(written):
    shown = pd.read_csv(written.folder / "ablation.csv")
    np.testing.assert_allclose(shown.random_delta, shown.before_estimate * 0 + 0.88 - 0.9)
    assert set(shown.way) == {"repooled", "reextracted"}
    assert (shown.groupby(["run", "condition"]).size() == 1).all()


def test_the_own_direction_stands_once_beside_those_of_other_models(written):
    shown = pd.read_csv(written.folder / "steering-transfer.csv")
    assert (shown[shown.role == "own"].groupby("run").size() == 1).all()
    mapped = shown[shown.role == "mapped"]
    assert {tuple(row) for row in mapped[["source_run", "run"]].to_numpy()} == {
        (a, b) for a in RUNS for b in RUNS if a != b
    }
    assert (mapped.source == mapped.source_run).all()


def test_the_share_of_coherent_texts_is_counted(written):
    shown = pd.read_csv(written.folder / "doses.csv").query("outcome == 'coherent'")
    by_alpha = shown[shown.direction == "diff_means"].groupby("alpha_separation").estimate.mean()
    assert by_alpha.to_dict() == {-2.0: 1.0, 0.0: 1.0, 2.0: 0.75}
    assert (shown.n_texts == 4).all()


def test_the_key_numbers_are_the_nested_ones(written):
    shown = pd.read_csv(written.folder / "key-numbers.csv")
    rows = paper_input().rows
    rows = rows[(rows.analysis == "probe") & (rows.pool == "mean_response")]
    nested = rows[rows.metric == "auroc_nested"]
    keys = ["run", "subset", "method"]
    both = shown.merge(nested, on=keys, validate="one_to_one")
    assert len(both) == len(shown) == len(nested)
    np.testing.assert_allclose(both.auroc, both.estimate)
    np.testing.assert_allclose(both.delta, both.bow_delta)
    assert set(shown[shown.subset == "shortcut"].reading) == {"ceiling"}


def test_every_hypothesis_has_an_answer_in_every_model(written):
    shown = pd.read_csv(written.folder / "hypotheses.csv")
    assert list(dict.fromkeys(shown.hypothesis)) == [f"H{i}" for i in range(1, 10)]
    asked = shown[shown.hypothesis != "H1"].groupby("hypothesis").run.apply(list)
    assert all(runs == list(RUNS) for runs in asked)
    # Steering beyond patching of the same size, but patching works too.
    assert set(shown[shown.hypothesis == "H2"].answer) == {"not supported"}
    unrun = shown[shown.hypothesis == "H9"]
    assert set(unrun.answer) == {"cannot tell"}


# -- what is left out


def test_a_stage_that_was_not_run_has_no_file_and_a_reason(tmp_path):
    write_paper(paper_input(), tmp_path)
    done = write_paper(realistic_input(steering=None), tmp_path)
    assert set(done.written) == {"key-numbers", "auroc", "hypotheses"}
    left = {path.stem for path in tmp_path.iterdir()} - {"index"}
    assert left == set(done.written)  # the files of the first time are gone
    index = (tmp_path / "index.tex").read_text()
    assert re.findall(r"^\\input\{([\w-]+)\}$", index, flags=re.MULTILINE) == list(done.written)
    for name, reason in done.left_out.items():
        assert f"% left out: {name}: " in index
        assert "not" in reason


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"actlake\[paper\]"):
        write_paper(small_input(), tmp_path / "paper")
    assert not (tmp_path / "paper").exists()


def test_the_command_names_its_files_and_what_it_left_out(tmp_path):
    done = CliRunner().invoke(cli, ["paper", str(tmp_path / "none"), "--out", str(tmp_path / "p")])
    assert done.exit_code != 0
    assert "no probe results here" in str(done.exception)
    assert not (tmp_path / "p").exists()


# -- LaTeX


def typeset(latex):
    """What TeX prints of escaped text, token by token; a bare special character is an error."""
    words = {
        "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<",
        "textgreater": ">", "textbar": "|", "textasciigrave": "`", "alpha": "α", "beta": "β",
        "rho": "ρ", "sigma": "σ", "Delta": "Δ", "times": "×", "cdot": "·", "rightarrow": "→",
        "le": "≤", "ge": "≥", "pm": "±", "Vert": "‖", "dots": "…", "circ": "°",
    }  # fmt: skip
    out, depth, maths, i = "", 0, False, 0
    while i < len(latex):
        if latex[i] == "\\":
            token = re.match(r"\\([A-Za-z]+|.)", latex[i:], flags=re.DOTALL)
            out += words.get(token[1], token[1] if token[1] in "{}$&#_%" else "")
            assert token[1] in words or token[1] in "{}$&#_%", token[0]
            i += len(token[0])
            continue
        if latex[i] in "{}":
            depth += 1 if latex[i] == "{" else -1
            assert depth >= 0
        elif latex[i] == "$":
            maths = not maths
        elif latex[i] == "^" and maths:
            pass
        elif maths and latex[i] in "-'":
            out += {"-": "−", "'": "′"}[latex[i]]
        else:
            assert latex[i] not in "&#_%~^", latex
            out += latex[i]
        i += 1
    assert (depth, maths) == (0, False)
    return out


@given(st.text(alphabet=st.sampled_from("ab \\{}$&#^_~%<>|[]*-α−×"), max_size=40))
def test_escaped_text_prints_as_it_stands(text):
    shown = re.sub(r"(?<![\w.-])-(?=\.?\d)", "−", printable(text))
    assert typeset(escape(text)) == shown


@given(st.text(max_size=60))
def test_no_text_is_a_command(text):
    typeset(escape(text))
    assert "\n" not in escape(text)


def test_hyphens_in_a_row_stay_hyphens_and_signs_are_minus_signs():
    assert escape("a--b") == "a-{}-b"
    assert escape("-0.5 to -.25, x-1") == "$-$0.5 to $-$.25, x-1"


def structure(latex):
    """Check a float: environments that close in order, rows of as many cells as columns."""
    text = re.sub(r"(?<!\\)%.*", "", latex)
    open_ = []
    for kind, name in re.findall(r"\\(begin|end)\{([\w*]+)\}", text):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert not open_
    bare = text.replace(r"\\", "").replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    cells = {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows}
    columns = re.search(r"\\begin\{tabular\}\{(.*)\}$", text, flags=re.MULTILINE)
    if columns:
        spec = re.sub(r"@\{\}|\{[\d.]+cm\}", "", columns[1])
        assert cells == {len(spec)}
    return rows


@pytest.mark.parametrize("name", [*PARTS, "index"])
def test_the_latex_of_hostile_names_is_whole(tmp_path_factory, name):
    folder = hostile_paper(tmp_path_factory)
    latex = (folder / f"{name}.tex").read_text(encoding="utf-8")
    rows = structure(latex)
    assert r"\input{x}" not in latex
    if name == "key-numbers":
        assert len(rows) == 1 + len(pd.read_csv(folder / "key-numbers.csv"))
        assert any(escape(HOSTILE) in row for row in rows)
    for label in re.findall(r"\\ref\{(.*?)\}", latex):
        there = [p.read_text() for p in folder.glob("*.tex")]
        assert any(rf"\label{{{label}}}" in text for text in there), label


def hostile_paper(factory, *, _made={}):  # noqa: B006  # made once for all parts
    if "folder" not in _made:
        _made["folder"] = factory.mktemp("hostile")
        results = renamed(paper_input(title=HOSTILE), RUNS[0], HOSTILE)
        write_paper(results, _made["folder"])
    return _made["folder"]


def test_a_name_with_dollar_signs_is_drawn_as_it_stands(tmp_path_factory):
    folder = hostile_paper(tmp_path_factory)
    (page,) = PdfReader(folder / "mediation.pdf").pages
    assert r"c$d \input{x} & #1" in page.extract_text()
