import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from actlake.cli import cli
from actlake.extract import checks, find_blocks, load_model
from actlake.extract.checks import check_model
from actlake.schemas import InvalidInputError
from tests.extract.tiny import CONFIGS, tiny_folder

pytestmark = pytest.mark.torch


def load(tmp_path, name, **options):
    return load_model(str(tiny_folder(name, tmp_path / name)), head=True, **options)


def verdicts(loaded):
    return {check.name: check.ok for check in check_model(loaded)}


@pytest.mark.parametrize("name", CONFIGS)
def test_sound_models_pass(tmp_path, name):
    loaded = load(tmp_path, name)
    assert [c for c in check_model(loaded) if not c.ok] == []
    left = [hook for m in loaded.network.modules() for hook in m._forward_hooks.values()]
    assert not [hook for hook in left if not hook.__module__.startswith("transformers")]


def test_half_precision_passes_with_its_own_tolerance(tmp_path):
    assert all(verdicts(load(tmp_path, "llama", dtype="bfloat16")).values())


def test_a_lost_softcap_is_found(tmp_path):
    loaded = load(tmp_path, "gemma2")
    assert verdicts(loaded)["attention"]
    # Newer transformers refuse sdpa here, older ones take it and drop the cap without a word.
    info = loaded.info.model_copy(update={"attn_implementation": "sdpa"})
    assert not verdicts(replace(loaded, info=info))["attention"]


def test_positions_that_depend_on_the_batch_are_found(tmp_path):
    loaded = load(tmp_path, "llama")
    block = find_blocks(loaded.backbone)[0]
    block.register_forward_hook(lambda _m, _a, out: out * (1 + 0.01 * len(out)))
    found = verdicts(loaded)
    assert not found["padding"]


def test_a_block_whose_output_is_not_all_that_goes_on_is_found(tmp_path):
    loaded = load(tmp_path, "llama")
    norm = loaded.backbone.norm
    first = find_blocks(loaded.backbone)[0]
    seen = []
    first.register_forward_hook(lambda _m, _a, out: seen.append(out.clone()))
    norm.register_forward_pre_hook(lambda _m, args: (args[0] + seen[-1],))
    assert not verdicts(loaded)["before the final norm"]


def test_a_second_bos_is_found(tmp_path):
    loaded = load(tmp_path, "llama")
    loaded.tokenizer.chat_template = "{{ bos_token }}" + loaded.tokenizer.chat_template
    with pytest.raises(InvalidInputError, match="BOS"):
        check_model(loaded)


def test_a_model_that_ignores_its_blocks_is_found(tmp_path):
    loaded = load(tmp_path, "llama")
    with torch.no_grad():
        loaded.network.lm_head.weight.zero_()
    assert not verdicts(loaded)["intervention"]


def test_the_command_prints_a_verdict_and_fails_where_there_is_doubt(tmp_path, monkeypatch):
    folder = tiny_folder("llama", tmp_path / "tiny")
    done = CliRunner().invoke(cli, ["extract", "check", str(folder), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["ok"]
    assert {c["name"] for c in found["checks"]} >= {"sites", "capture", "padding"}
    monkeypatch.setitem(checks._PADDING, "float32", 0.0)
    done = CliRunner().invoke(cli, ["extract", "check", str(folder)])
    assert done.exit_code == 1
    assert "do not trust: padding" in done.stdout
