import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.analyze import load_directions
from actlake.cli import cli
from actlake.schemas import InvalidInputError, NotFoundError, StudyCorpus
from actlake.stages import load_corpus

pytestmark = pytest.mark.torch
RUN = "llama-organism"
MODEL = f"bundled:{RUN}"
SMALL = ["--prompts", "4", "--random", "3", "--shuffled", "2", "--alphas", "-1,0,1"]
UNITS = ["alpha_raw", "alpha_separation", "alpha_norm", "alpha_angle"]


def call(*args):
    done = CliRunner().invoke(cli, [str(a) for a in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a probed run of an organism over a part of the demo corpus."""
    folder = tmp_path_factory.mktemp("store")
    _, texts = load_corpus(StudyCorpus(source="bundled:demo"))
    chosen = [t for t in texts if t.pair is not None and t.subset == "plain"]
    kept, n_of = [], {}
    for text in chosen:
        n_of[text.scenario] = n_of.get(text.scenario, 0) + 1
        if n_of[text.scenario] <= 6:
            kept.append(text)
    source = folder / "texts.jsonl"
    source.write_text("".join(t.to_json(indent=None).strip() + "\n" for t in kept))
    call("extract", "run", MODEL, "--corpus", source, "--store", folder / "store",
         "--pools", "mean_response")  # fmt: skip
    call("probe", folder / "store", RUN, "--out", folder / "results", "--random", 20)
    return folder


def steer(store, *args, out=None):
    return call("steer", "run", store / "store", RUN, "--model", MODEL, "--out",
                out or store / "results", *args)  # fmt: skip


@pytest.fixture(scope="module")
def swept(store):
    args = ["--top-layers", "2", "--together", *SMALL]
    cost = json.loads(steer(store, *args, "--dry-run", "--json").stdout)
    assert not (store / "results" / RUN / "steer").exists()
    done = steer(store, *args, "--json")
    return cost, done, store / "results" / RUN / "steer"


def test_every_control_stands_in_one_table_with_four_units(swept):
    cost, done, folder = swept
    rows = pd.read_parquet(folder / "steering.parquet")
    assert rows[UNITS].notna().all(axis=None)
    single = rows[rows["layer"].notna()]
    assert single["layer"].nunique() == 2
    together = rows[rows["layers"].fillna("").str.contains("+", regex=False)]
    assert together["layers"].iloc[0] == "+".join(str(int(n)) for n in sorted(set(single["layer"])))
    arms = {"diff_means": 1, "random": 3, "shuffled": 2, "orthogonal": 1}
    for place in (*(g for _, g in single.groupby("layer")), together):
        found = place[["direction", "direction_index"]].drop_duplicates()["direction"]
        assert found.value_counts().to_dict() == arms
        assert len(place) == 3 * 7
    prompts = rows[rows["direction"] == "system_prompt"].set_index("prompt")
    assert (prompts[UNITS] == 0).all(axis=None)
    assert set(prompts.index) == {"positive", "negative"}
    for name in ("run", "tuned", "code_version", "content_digest", "dataset_digest", "dtype"):
        assert rows[name].notna().all(), name
    samples = pd.read_parquet(folder / "samples.parquet")
    assert samples[UNITS].notna().all(axis=None)
    assert len(samples) == 3 * 21 * 4 + 2 * 6 * 4
    # The report and the summary go on about the first layer, its direction and the random ones.
    summary = json.loads(done.stdout)
    assert summary["steer_layer"] == int(single["layer"].iloc[0])
    assert "conditions" in done.stderr
    assert cost["layers"] == "to be chosen"
    n_train, n_angles = 4, 4
    assert cost["parts"]["choosing layers"] == 6 * 9 * 2 * 2 * n_train
    sweeps = [n for name, n in cost["parts"].items() if name.startswith("sweep of layers")]
    assert sweeps == [7 * 3 * 8 + n_angles] * 2 + [7 * 3 * 8 + 2 * n_angles]
    assert cost["parts"]["system prompts"] == 13 * 8
    assert cost["rows"] == sum(cost["parts"].values())
    assert "estimated_seconds" not in cost


def test_a_dry_run_says_how_long_and_how_dear_a_sweep_is(store):
    args = [*SMALL, "--layer", "2", "--controls", "none", "--dry-run", "--json"]
    before = sorted((store / "results").rglob("*"))
    plain = json.loads(steer(store, *args).stdout)
    found = json.loads(steer(store, *args, "--probe", "0.1", "--price-per-hour", "3600").stdout)
    expected = found["tokens"] / found["tokens_per_second"]
    assert found["estimated_seconds"] == pytest.approx(expected, abs=0.06)  # one decimal
    assert found["estimated_cost"] == pytest.approx(found["estimated_seconds"], abs=0.06)
    assert plain == {name: found[name] for name in plain}
    assert sorted((store / "results").rglob("*")) == before
    with pytest.raises(InvalidInputError, match="add --dry-run"):
        steer(store, "--price-per-hour", "1")


def test_specs_and_placebos_lie_beside_the_samples(store, swept):
    _, _, folder = swept
    again = steer(store, "--top-layers", "2", "--together", *SMALL, "--dry-run", "--json").stdout
    assert json.loads(again) == {"forwards": 0, "rows": 0, "tokens": 0, "layers": "done"}
    record = json.loads((folder / "spec.json").read_text())
    assert record["spec"]["together"] is True
    assert len(record["personas"]["positive"]) == 6
    assert len(record["prompts"]) == 4
    methods = {d.method for d in load_directions(folder / "placebos").directions}
    assert methods == {"shuffled-0", "shuffled-1", "orthogonal"}
    layers = pd.read_csv(folder / "layers.csv")
    assert list(layers["layer"][:2]) == record["layers"]


def test_the_samples_answer_how_strong_is_needed_in_four_units(swept):
    _, _, folder = swept
    samples = pd.read_parquet(folder / "samples.parquet")
    steered = samples[samples["direction"].isin(["diff_means", "random"])]
    steered.to_parquet(folder.parent / "steered.parquet")
    raw = float(steered["alpha_raw"].max())
    said = json.loads(
        call(
            "doses", folder.parent / "steered.parquet", "--map", "prompt=pair", "--by",
            "layers,direction", "--cluster", "scenario", "--claimed", raw, "--json",
        ).stdout
    )  # fmt: skip
    verdicts = {v["group"]: v for v in said["verdicts"] if v["side"] == "positive"}
    assert len(verdicts) == 3 * 2
    for verdict in verdicts.values():
        assert verdict["rule"]
    tested = [v for v in verdicts.values() if v["claimed_raw"] == pytest.approx(raw)]
    for unit in ("separation", "norm", "angle"):
        assert any(v[f"claimed_{unit}"] is not None for v in tested)
    rows = pd.DataFrame(said["rows"])
    at_dose = rows[(rows["metric"] == "success_rate") & (rows["side"] == "positive")]
    assert at_dose[UNITS].notna().all(axis=None)


def test_more_strengths_cost_only_themselves(store, swept):
    _, _, folder = swept
    layers = json.loads((folder / "spec.json").read_text())["layers"]
    args = ["--layers", ",".join(map(str, layers)), "--together", *SMALL[:-1], "-1,0,1,2"]
    args += ["--controls", "shuffled,orthogonal"]
    cost = json.loads(steer(store, *args, "--dry-run", "--json").stdout)
    assert cost["layers"] == layers
    # Of each place: seven directions at one new strength, and the angles of four prompts.
    assert cost["parts"] == {
        "choosing layers": 0,
        f"sweep of layers {layers[0]}": 7 * 8 + 4,
        f"sweep of layers {layers[1]}": 7 * 8 + 4,
        f"sweep of layers {'+'.join(map(str, sorted(layers)))}": 7 * 8 + 8,
    }


def test_the_grids_of_the_plan(store):
    args = ["--layer", "2", "--prompts", "2", "--random", "1", "--controls", "none", "--dry-run"]
    raw = json.loads(steer(store, *args, "--grid", "raw", "--json").stdout)
    assert raw["parts"]["sweep of layers 2"] == 2 * 21 * 4 + 2
    separation = json.loads(steer(store, *args, "--grid", "separation", "--json").stdout)
    assert separation["parts"]["sweep of layers 2"] == 2 * 15 * 4 + 2
    assert "rows" in steer(store, *args).stdout


@pytest.mark.slow
def test_a_killed_sweep_goes_on(store, tmp_path):
    """The process is killed while conditions are committed; what was committed stays."""
    (tmp_path / RUN).mkdir()
    (tmp_path / RUN / "probe").symlink_to(store / "results" / RUN / "probe")
    args = ["steer", "run", store / "store", RUN, "--model", MODEL, "--out", tmp_path, "--layer",
            "2", "--prompts", "12", "--random", "20", "--controls", "none"]  # fmt: skip
    command = [str(Path(sys.executable).with_name("actlake")), *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    commits = tmp_path / RUN / "steer-conditions"
    stop = time.monotonic() + 120
    while time.monotonic() < stop and len(list(commits.glob("*/commits/*.json"))) < 2:
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / RUN / "steer").exists()
    n_kept = len(list(commits.glob("*/commits/*.json")))
    assert n_kept >= 2
    cost = json.loads(call(*args, "--dry-run", "--json").stdout)
    whole = 21 * 9 * 12 * 2 + 12
    assert cost["rows"] < whole
    call(*args)
    assert (tmp_path / RUN / "steer" / "steering.parquet").exists()
    assert json.loads(call(*args, "--dry-run", "--json").stdout)["rows"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--grid", "raw", "--unit", "raw"], "leave out --alphas and --unit"),
        (["--layers", "all"], "named one by one"),
        (["--layers", "1", "--layer", "1"], "give one of them"),
        (["--top-layers", "40"], "only 6 layers have a direction"),
        (["--layer", "40"], r"no layers \[40\]; it has \[0, 1, 2, 3, 4, 5\]"),
        (["--alphas", "1,nan"], "finite"),
        (["--alphas", "1,two"], "cannot be read"),
        (["--controls", "nonsense"], "controls"),
        (["--pool", "last_prompt"], "no diff_means directions of pool 'last_prompt'"),
        (["--model", "bundled:phi3-organism"], "phi3-organism is 96: it comes from llama-organism"),
    ],
)
def test_wrong_calls_say_what_to_mend(store, args, message):
    with pytest.raises((InvalidInputError, NotFoundError), match=message):
        steer(store, *SMALL, *args, "--dry-run")


def test_a_run_without_probes_is_refused(store, tmp_path):
    with pytest.raises(NotFoundError, match="has no probe results"):
        steer(store, "--dry-run", out=tmp_path)
