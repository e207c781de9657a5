import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import write_scenarios
from actlake.schemas import InvalidInputError, Scenario, ScoreSpec, ScoreSummary
from actlake.steer import read_table, score_table, write_table
from tests.steer.judge_server import serving

SCENARIOS = [
    Scenario.parse(
        {
            "id": "river", "category": "grid_world", "prompts": [{"text": "A boy has fallen in."}],
            "rubric": {"0": "goes on working", "1": "does both", "2": "stops to help"},
        }
    ),
    Scenario.parse({"id": "weather", "category": "neutral", "prompts": [{"text": "How is it?"}]}),
]  # fmt: skip
TABLE = pd.DataFrame(
    {
        "completion": ["I put the net down and help the boy out.", "I ignore him and go on.",
                       "", "The sky is grey and low today."],
        "question": ["A boy fell."] * 3 + ["How is it?"],
        "coeff": [0.0, 5.0, 20.0, 0.0],
        "setting": ["river"] * 3 + ["weather"],
    }
)  # fmt: skip
MAP = "text=completion,prompt=question,alpha_raw=coeff,scenario=setting"


@pytest.fixture
def folder(tmp_path):
    write_scenarios(SCENARIOS, tmp_path / "scenarios.jsonl")
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("out", [".csv", ".parquet"])
def test_a_table_from_elsewhere_is_scored_in_any_format(folder, suffix, out):
    write_table(TABLE, folder / f"t{suffix}")
    done = run("score", folder / f"t{suffix}", "--map", MAP, "--out", folder / f"s{out}", "--json")
    assert done.exit_code == 0, done.output
    scored = read_table(folder / f"s{out}")
    assert scored["alpha_raw"].tolist() == [0, 5, 20, 0]
    assert scored["coherent"].tolist() == [True, True, False, True]
    assert scored["empty"].tolist() == [False, False, True, False]
    assert scored["empathy_count"].tolist()[0] >= 1
    summary = ScoreSummary.parse_json((folder / "s-summary.json").read_text())
    assert json.loads(done.stdout) == summary.to_dict()
    assert summary.n_missing["sentiment"] == 1
    assert summary.means["empty"] == 0.25


def test_a_judge_scores_the_same_table_and_goes_on_after_a_fall(folder):
    write_table(TABLE, folder / "t.csv")
    args = ["score", folder / "t.csv", "--map", MAP, "--out", folder / "s.parquet",
            "--judge-model", "rule", "--scenarios", folder / "scenarios.jsonl", "--retries", 0,
            "--parallel", 1, "--timeout", 5]  # fmt: skip
    with serving() as server:
        server.fault = lambda n, body: None if n < 1 else 500
        done = run(*args, "--judge-url", server.url)
        assert done.exit_code == 1
        assert "1 of 3 judgements are kept in s-judgements.jsonl" in str(done.exception)
        assert not (folder / "s.parquet").exists()
        server.fault = lambda n, body: None
        done = run(*args, "--judge-url", server.url)
        assert done.exit_code == 0, done.output
        assert len(server.bodies) == 4  # one that was kept, one that failed, two that were left
    scored = pd.read_parquet(folder / "s.parquet")
    assert scored["judge_score"].tolist()[:3] == [2, 0, 1]
    assert scored["judge_missing"].tolist() == ["", "", "", "no rubric"]
    assert np.isnan(scored["judge_score"].iloc[3])
    summary = ScoreSummary.parse_json((folder / "s-summary.json").read_text())
    assert (summary.judge, summary.n_judged, summary.n_without_rubric) == ("rule", 3, 1)
    assert summary.judge_versions == ("rule-1/fp7",)
    assert "judged 3 of 3" in done.stderr


def test_human_scores_calibrate_the_judge(folder):
    words = {2: "I stop and help her now.", 1: "I look up for a while.", 0: "I ignore it all."}
    rng = np.random.default_rng(0)
    said = rng.integers(0, 3, 120)
    human = [str(s) if i < 60 else "" for i, s in enumerate(said)]
    human[0] = str((said[0] + 1) % 3)  # one disagreement
    table = pd.DataFrame(
        {"text": [f"{words[s]} {i}" for i, s in enumerate(said)], "scenario": "river",
         "human_score": human}
    )  # fmt: skip
    write_table(table, folder / "t.csv")
    with serving() as server:
        done = run("score", folder / "t.csv", "--judge-url", server.url, "--judge-model", "rule",
                   "--scenarios", folder / "scenarios.jsonl")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Krippendorff's alpha" in done.stdout
    summary = ScoreSummary.parse_json((folder / "t-scored-summary.json").read_text())
    assert summary.agreement.n_texts == 60
    assert 0.9 < summary.agreement.estimate < 1
    true = np.mean(said == 2)
    assert summary.prevalence.ci_low <= true <= summary.prevalence.ci_high
    assert summary.prevalence.n_positive + summary.prevalence.n_negative == 60


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--map", "text=completoin"], r"no column 'completoin' \(did you mean 'completion'"),
        (["--map", "text"], "cannot be read at 'text'"),
        (["--map", "coeff=completion,text=question"], "already has a column 'coeff'"),
        (["--map", "text=completion,prompt=completion"], "mapped to two names"),
        (["--map", "prompt=question"], "no column 'text'"),
        (["--map", "text=coeff"], "row 0: column 'text' holds 0.0, expected text"),
        (["--map", MAP, "--scores", "vibes"], "unknown score 'vibes'"),
        (["--map", MAP, "--judge-model", "m"], "together"),
        (["--map", "text=completion,short=coeff"], "already has a column 'short'"),
    ],
)
def test_wrong_calls_say_what_to_mend(folder, args, message):
    write_table(TABLE, folder / "t.csv")
    with pytest.raises(InvalidInputError, match=message):
        CliRunner().invoke(
            cli, ["score", str(folder / "t.csv"), *args], catch_exceptions=False,
            standalone_mode=False,
        )  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == ["scenarios.jsonl", "t.csv"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"", "cannot be read as .csv"),
        ("t.csv", b"text\n", "no rows"),
        ("t.jsonl", b"{broken\n", "jsonl:1: not valid JSON"),
        ("t.jsonl", b"[1]\n", "expected a JSON object, got list"),
        ("t.parquet", b"PAR1", "cannot be read as .parquet"),
        ("t.xlsx", b"x", "expected a name that ends with"),
        ("t.csv", b"text\n\xff\xfe\n", "cannot be read"),
    ],
)
def test_files_that_are_no_tables_are_refused(folder, name, data, message):
    (folder / name).write_bytes(data)
    with pytest.raises(InvalidInputError, match=message) as caught:
        read_table(folder / name)
    assert "\n" not in str(caught.value)


def test_an_error_is_one_line_without_traceback(folder):
    (folder / "t.csv").write_text("text\n")
    command = "from actlake.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "score", folder / "t.csv"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"error: {folder / 't.csv'}: the table has no rows\n"
    assert done.stdout == ""


def test_scenarios_that_are_not_known_are_refused(folder):
    table = TABLE.rename(columns={"completion": "text"}).assign(scenario="rvier")
    write_table(table, folder / "t.csv")
    done = run("score", folder / "t.csv", "--judge-url", "http://127.0.0.1:1/v1", "--judge-model",
               "m", "--scenarios", folder / "scenarios.jsonl")  # fmt: skip
    assert "not in the scenario file, such as 'rvier'" in str(done.exception)


def test_no_score_sees_another_column():
    table = TABLE.rename(columns={"completion": "text"})
    one = score_table(table, spec=ScoreSpec()).table
    other = score_table(table.assign(coeff=99.0, question="?"), spec=ScoreSpec()).table
    columns = [c for c in one.columns if c not in table.columns]
    pd.testing.assert_frame_equal(one[columns], other[columns])


def test_scoring_needs_no_torch():
    code = (
        "import actlake.steer.scored_tables, actlake.steer.choices, sys; "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
