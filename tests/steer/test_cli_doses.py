import json

import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.schemas import InvalidInputError
from actlake.steer import read_table, write_table
from tests.steer.test_doses import samples_of
from tests.steer.test_shifts import negative_table, scenario_table


def run(*args):
    return CliRunner().invoke(cli, [str(a) for a in args])


@pytest.fixture
def sweep(tmp_path):
    table = samples_of(
        lambda a, p, rng: float(a >= 5 and p < 18) + 0.001 * p, coherent=lambda a, p, rng: a < 25
    ).rename(columns={"prompt": "pair", "alpha_raw": "coeff"})
    write_table(
        pd.concat([table.assign(direction=d) for d in ("own", "other")]), tmp_path / "t.csv"
    )
    return tmp_path


def test_doses_of_a_table_in_json_and_as_a_file(sweep):
    done = run("doses", sweep / "t.csv", "--map", "prompt=pair,alpha_raw=coeff", "--by",
               "direction", "--coherence", "coherent", "--separation", 2.5, "--mean-norm", 40,
               "--draws", 200, "--out", sweep / "rows.parquet", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert {r["group"] for r in value["rows"]} == {"own", "other"}
    assert [v["claimed_separation"] for v in value["verdicts"]] == [8.0, 8.0]
    (breakdown,) = (
        r for r in value["rows"]
        if r["metric"] == "breakdown" and r["group"] == "own"
    )  # fmt: skip
    assert breakdown["estimate"] == 25
    assert len(read_table(sweep / "rows.parquet")) == len(value["rows"])


def test_doses_for_people_end_with_the_verdict(sweep):
    done = run("doses", sweep / "t.csv", "--map", "prompt=pair,alpha_raw=coeff", "--draws", 200)
    assert done.exit_code == 0, done.output
    assert "success_rate" in done.stdout
    assert "verdict" in done.stdout
    assert done.stderr == ""


def test_a_spec_file_is_read_and_options_override_it(sweep):
    (sweep / "s.toml").write_text(
        'alpha = "coeff"\nprompt = "pair"\nn_bootstrap = 150\nclaimed = 7\n'
    )
    args = ["doses", sweep / "t.csv", "--spec", sweep / "s.toml", "--json"]
    assert json.loads(run(*args).stdout)["verdicts"][0]["claimed_raw"] == 7
    assert json.loads(run(*args, "--claimed", 10).stdout)["verdicts"][0]["claimed_raw"] == 10
    (sweep / "s.toml").write_text("claim = 7\n")
    assert "unknown key 'claim' (did you mean 'claimed'?)" in str(run(*args).exception)


def test_negative_steering_and_task_free_scenarios_have_commands(tmp_path):
    write_table(negative_table(focus=0.6), tmp_path / "n.parquet")
    done = run("negative", tmp_path / "n.parquet", "--draws", 200, "--json")
    verdicts = json.loads(done.stdout)["verdicts"]
    assert verdicts[0]["verdict"] == "raises task focus without cruelty"
    write_table(scenario_table(free=0.0, conflict=0.15), tmp_path / "s.csv")
    done = run("task-free", tmp_path / "s.csv", "--draws", 200)
    assert done.exit_code == 0, done.output
    assert "fails without conflict" in done.stdout


def test_samples_are_counted():
    value = json.loads(run("samples", "--json").stdout)
    assert value["samples_for_margin"] == 97
    done = run("samples", "--baseline", 0.3, "--share", 0.5, "--strengths", 10)
    assert "samples_for_difference" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["doses", "t.csv"], r"no column 'alpha_raw'"),
        (["doses", "none.csv"], "no such file"),
        (["doses", "t.csv", "--draws", "5"], "n_bootstrap"),
        (["negative", "t.csv"], "no column 'judge_score'"),
        (["task-free", "t.csv"], "no column 'category'"),
        (["samples", "--margin", "10"], "margin must lie between 0 and 1"),
    ],
)
def test_wrong_calls_say_what_to_mend(sweep, monkeypatch, args, message):
    monkeypatch.chdir(sweep)
    done = run(*args)
    assert done.exit_code != 0
    assert message in str(done.exception)
    if "none" not in args[1]:
        assert isinstance(done.exception, InvalidInputError)
