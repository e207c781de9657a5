"""A direction of one organism steers another one, by maps of texts that both have read."""

import json
from itertools import islice

import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import bundled_corpus, corpus_info
from actlake.corpus.grammar import iter_examples
from actlake.extract import extract_run
from actlake.schemas import ActlakeError, CaptureSpec, ExtractSpec, Text
from actlake.store import create_store

pytestmark = pytest.mark.torch

SOURCE, TARGET = "llama-organism", "phi3-organism"
LAYERS = "2:3"  # the planted blocks


def call(*args):
    done = CliRunner().invoke(cli, [str(a) for a in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """The folder of a store of both organisms, of the mapped set, and what was printed."""
    folder = tmp_path_factory.mktemp("transfer")
    _, texts = bundled_corpus("demo")
    pairs = [t for t in texts if t.subset == "plain" and t.split == "train"][:100]
    # Conversations without a label: what both models read, and no pair has.
    neutral = [
        Text(
            id=f"free-{i:03d}", system=e.system, prompt=e.prompt, response=e.response,
            scenario=f"free-{i % 12}", generator="grammar", split="train", subset="free",
        )
        for i, e in enumerate(islice(iter_examples(77), 120))
    ]  # fmt: skip
    corpus = [*pairs, *neutral]
    store = create_store(folder / "store")
    capture = CaptureSpec.parse({"pools": ["mean_response"]})
    for name in (SOURCE, TARGET):
        extract_run(
            store, corpus, corpus_info("c", corpus), model=f"bundled:{name}", run=name,
            capture=capture, extract=ExtractSpec(device="cpu"),
        )  # fmt: skip
    shown = call(
        "analyze", "map", folder / "store", SOURCE, TARGET, "--layers", LAYERS, "--maps",
        "ridge", "--out", folder / "mapped", "--json",
    )  # fmt: skip
    return folder, shown["directions"]


def steer(folder, out, *options):
    return call(
        "steer", "transfer", f"bundled:{TARGET}", "bundled:demo", "--directions",
        folder / "mapped", "--subsets", "plain", "--prompts", "4", "--alphas", "-2,0,2",
        "--out", out, "--json", *options,
    )  # fmt: skip


def test_a_map_of_neutral_texts_finds_the_targets_own_direction(mapped):
    _, shown = mapped
    (row,) = shown
    assert row["map"] == "ridge"
    assert row["cosine"] > 0.95
    assert row["map_r2"] > 0.5
    assert row["anchors"] == 120


def test_a_mapped_direction_steers_as_the_own_one_does(mapped, tmp_path):
    folder, _ = mapped
    cost = steer(folder, tmp_path, "--dry-run")
    assert not list(tmp_path.iterdir())
    printed = steer(folder, tmp_path)
    rows = pd.read_parquet(tmp_path / "steer-transfer.parquet")
    samples = pd.read_parquet(tmp_path / "steer-transfer-samples.parquet")
    assert cost["rows"] == 2 * len(samples)
    effects = rows[rows["metric"] == "effect"].groupby("role")["estimate"]
    own = effects.get_group("own").item()
    assert own > 0.05
    ratios = rows[rows["metric"] == "ratio"]
    assert len(ratios) == len(printed["verdicts"]) == 1
    for ratio, verdict in zip(ratios.itertuples(), printed["verdicts"], strict=True):
        assert 0.7 < ratio.ci_low < ratio.estimate < ratio.ci_high < 1.4
        # More than any random direction of the source through the same map.
        assert ratio.p_value == pytest.approx(1 / 21)
        assert ratio.source_model == SOURCE
        # At the own direction's length a broken map may hit the target's leading component.
        assert verdict["answer"] in {"transfers", "unspecific"}
        assert f"{100 * ratio.estimate:.0f} %" in verdict["words"]
    assert (samples.loc[samples["role"] == "unsteered", "shift"] == 0).all()
    record = json.loads((tmp_path / "steer-transfer.json").read_text())
    assert record["verdicts"] == printed["verdicts"]
    assert steer(folder, tmp_path, "--dry-run")["rows"] == 0
    assert (tmp_path / "steer-transfer.svg").read_text().startswith("<svg ")


def test_as_long_as_its_map_makes_it_only_the_right_map_steers(mapped, tmp_path):
    folder, _ = mapped
    printed = steer(folder, tmp_path, "--strength", "mapped")
    rows = pd.read_parquet(tmp_path / "steer-transfer.parquet")
    effects = rows[rows["metric"] == "effect"].set_index("role")
    own = effects.loc["own", "estimate"]
    ridge = effects[effects["map"] == "ridge"]["estimate"]
    assert ridge.loc["permuted_anchors"].abs().max() < 0.5 * own
    assert ridge.loc["random_source"].abs().max() < 0.5 * own
    (verdict,) = printed["verdicts"]
    assert verdict["p_value"] == verdict["p_broken"] == pytest.approx(1 / 21)
    assert 0.7 < verdict["ratio_low"] < verdict["ratio_high"] < 1.4


def test_a_set_for_another_model_and_layers_that_are_no_pair_are_refused(mapped, tmp_path):
    folder, _ = mapped
    with pytest.raises(ActlakeError, match=f"phi3-organism|96 wide, {SOURCE}"):
        call(
            "steer", "transfer", f"bundled:{SOURCE}", "bundled:demo", "--directions",
            folder / "mapped", "--out", tmp_path,
        )  # fmt: skip
    with pytest.raises(ActlakeError, match="such as 12:20"):
        call("analyze", "map", folder / "store", SOURCE, TARGET, "--layers", "2")
