import json

import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.extract import load_model
from actlake.schemas import ActlakeError, Direction, InvalidInputError
from actlake.steer import align_contrasts, fit_contrast_direction
from tests.steer.contrasts import organism_contrasts

pytestmark = pytest.mark.torch
MODEL = "bundled:llama-organism"


def call(*args):
    done = CliRunner().invoke(cli, [str(a) for a in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    contrasts = organism_contrasts(6)
    path = folder / "contrasts.jsonl"
    path.write_text("\n".join(c.to_json(indent=None).strip() for c in contrasts))
    loaded = load_model(MODEL, head=True, device="cpu")
    vectors = fit_contrast_direction(
        loaded, align_contrasts(loaded, contrasts[:3]), place="response"
    )
    direction = Direction(
        method="diff_means", site="resid_post", layer=2, pool="mean_response", norm=2.0, bias=0.0,
        vector=tuple(float(x) for x in vectors[2]), model="llama-organism", run="r",
    )  # fmt: skip
    (folder / "direction.json").write_text(direction.to_json())
    return folder


def test_patching_with_directions_fitted_on_the_way(files, tmp_path):
    args = [MODEL, files / "contrasts.jsonl", "--fit", 3, "--layers", "1-2", "--random", 3,
            "--positions", "prompt-all,response,-1", "--out", tmp_path, "--json"]  # fmt: skip
    cost = json.loads(call("steer", "patch", *args, "--dry-run"))
    assert cost["forwards"] < cost["rows"] / 4
    assert not list(tmp_path.iterdir())
    shown = json.loads(call("steer", "patch", *args))
    best = max((r for r in shown if r["metric"] == "recovered"), key=lambda r: r["estimate"])
    assert (best["layer"], best["position"]) in {(1, "prompt-all"), (2, "response")}
    rows = pd.read_parquet(tmp_path / "patching.parquet")
    assert set(rows["arm"]) == {"full", "coordinate", "complement", "random", "wrong_layer"}
    samples = pd.read_parquet(tmp_path / "patching-samples.parquet")
    # Rows run once per completion, beside the clean runs and the shared beginnings of prompts.
    assert 2 * len(samples) < cost["rows"] < 2 * len(samples) + 3 * 16
    assert json.loads((tmp_path / "patching.json").read_text())["spec"]["layers"] == [1, 2]
    assert "Patches by layer and position" in (tmp_path / "patching.svg").read_text()
    # What was run is kept, along the direction that was fitted then.
    assert (cost["done"], cost["conditions"]) == (0, len(samples))
    again = json.loads(call("steer", "patch", *args, "--dry-run"))
    assert (again["done"], again["forwards"]) == (len(samples), 0)
    assert json.loads(call("steer", "patch", *args)) == shown
    more = json.loads(call("steer", "patch", *args, "--random", 4, "--dry-run"))
    assert more["conditions"] - more["done"] == len(samples) // 7  # one more beside seven others


def test_mediation_and_the_comparison_with_a_given_direction(files, tmp_path):
    common = [MODEL, files / "contrasts.jsonl", "--directions", files / "direction.json",
              "--layers", "2", "--random", "3", "--position", "response", "--out", tmp_path,
              "--json"]  # fmt: skip
    assert json.loads(call("steer", "mediate", *common, "--dry-run"))["rows"] > 100
    shown = json.loads(call("steer", "mediate", *common))
    share = {r["mediator"]: r for r in shown if r["metric"] == "proportion"}
    assert share["full"]["estimate"] > 0.9
    assert 0.2 < share["coordinate"]["estimate"] < 1.1
    assert json.loads(call("steer", "mediate", *common, "--dry-run"))["rows"] == 0
    shown = json.loads(call("steer", "match", *common, "--steer-position", "response"))
    assert [r["what"] for r in shown] == ["patch", "steer", "steer - patch"]
    assert "steering as far at response" in (tmp_path / "matched.svg").read_text()
    assert json.loads(call("steer", "match", *common, "--dry-run"))["rows"] > 50
    cost = json.loads(call("steer", "match", *common, "--steer-position", "response", "--dry-run"))
    assert (cost["done"], cost["rows"]) == (cost["conditions"], 0)
    assert {f.name for f in tmp_path.glob("*.json")} == {"mediation.json", "matched.json"}


@pytest.mark.parametrize("command", ["patch", "mediate", "match", "generate"])
def test_a_dry_run_says_how_long_and_how_dear_and_writes_nothing(files, tmp_path, command):
    args = ["steer", command, MODEL, files / "contrasts.jsonl", "--layers", 2]
    if command == "generate":
        args = ["steer", command, MODEL, "bundled:demo", "--layer", 2, "--max-new-tokens", 4,
                "--prompts", 4]  # fmt: skip
    args += ["--directions", files / "direction.json", "--out", tmp_path / "out", "--json"]
    assert "estimated_seconds" not in json.loads(call(*args, "--dry-run"))
    priced = [*args, "--probe", 0.1, "--price-per-hour", 3600]
    found = json.loads(call(*priced, "--dry-run"))
    expected = found["tokens"] / found["tokens_per_second"]
    assert found["estimated_seconds"] == pytest.approx(expected, abs=0.06)  # one decimal
    assert found["estimated_cost"] == pytest.approx(found["estimated_seconds"], abs=0.06)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInputError, match="add --dry-run"):
        call(*priced)


def test_generation_is_resumed_and_costed(files, tmp_path):
    args = ["steer", "generate", MODEL, "bundled:demo", "--directions", files / "direction.json",
            "--layer", 2, "--alphas", "0,2", "--random", 1, "--prompts", 3, "--max-new-tokens", 6,
            "--out", tmp_path / "texts", "--json"]  # fmt: skip
    assert json.loads(call(*args, "--dry-run"))["rows"] == 12
    assert json.loads(call(*args))["texts"] == 12
    assert json.loads(call(*args, "--dry-run"))["rows"] == 0
    assert json.loads(call(*args))["texts"] == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--directions", "{f}/direction.json"], r"no direction 'diff_means' of layers \[0, 1, 3"),
        (["--fit", "6"], "leaves none of 6 contrasts"),
        (["--fit", "2", "--positions", "nowhere"], "positions"),
        (["--arms", "coordinate"], "needs a direction"),
        (["--directions", "{f}/none.json"], "none.json cannot be read"),
    ],
)
def test_what_cannot_be_patched_is_one_line(files, change, message):
    change = [part.format(f=files) for part in change]
    with pytest.raises(ActlakeError, match=message):
        call("steer", "patch", MODEL, files / "contrasts.jsonl", "--dry-run", *change)


@pytest.mark.parametrize("command", ["patch", "mediate", "match"])
@pytest.mark.parametrize("how", ["--dry-run", "--seed"])
def test_contrasts_at_a_layer_that_does_not_exist_or_beyond_the_context(files, command, how):
    options = ["--dry-run"] if how == "--dry-run" else ["--seed", 1]
    args = ["--fit", 2, *options, "--out", files / "never"]
    with pytest.raises(InvalidInputError, match="layer 9 does not exist; there are layers 0 to 5"):
        call("steer", command, MODEL, files / "contrasts.jsonl", "--layers", "2,9", *args)
    lines = (files / "contrasts.jsonl").read_text().splitlines()
    far = {**json.loads(lines[0]), "prompt": "I see you fall. " * 200}
    (files / "far.jsonl").write_text("\n".join([json.dumps(far), *lines[1:]]))
    with pytest.raises(InvalidInputError, match="the limit is 256"):
        call("steer", command, MODEL, files / "far.jsonl", *args)


def test_strengths_that_are_not_finite_are_refused_by_every_command(files, tmp_path):
    common = ["--directions", files / "direction.json", "--out", tmp_path / "never"]
    for args in (
        ["generate", MODEL, "bundled:demo", "--layer", 2, "--alphas", "0,nan", *common],
        ["run", tmp_path, "r", "--model", MODEL, "--alphas", "0,inf"],
        ["transfer", MODEL, "bundled:demo", "--alphas=-inf,0,1", "--directions", files],
        ["transfer", MODEL, "bundled:demo", "--at", "nan", "--directions", files],
    ):
        with pytest.raises(InvalidInputError, match="finite"):
            call("steer", *args)
    with pytest.raises(InvalidInputError, match=r"no direction|layer 9"):
        call("steer", "generate", MODEL, "bundled:demo", "--layer", 9, *common)
    assert not (tmp_path / "never").exists()


def test_a_bad_line_is_named_and_steering_itself_goes_by_its_old_name(files):
    bad = files / "bad.jsonl"
    bad.write_text('{"id": "x"}\n')
    with pytest.raises(ActlakeError, match=r"bad.jsonl:1: missing key 'prompt'"):
        call("steer", "patch", MODEL, bad)
    assert "Sweep the strength" in call("steer", "run", "--help")
    with pytest.raises(ActlakeError, match="steering needs a direction"):
        call("steer", "match", MODEL, files / "contrasts.jsonl", "--dry-run")
