"""Compiled blocks: captured as before, or refused."""

import numpy as np
import pytest
import torch

from actlake.corpus import corpus_info
from actlake.extract import TransformersEngine, extract_run, find_blocks, load_model
from actlake.extract import plan_extraction as plan
from actlake.extract.compiling import prove_compiled
from actlake.schemas import CaptureSpec, ExtractSpec, InvalidInputError
from actlake.store import create_store, open_run, verify_run
from tests.extract.test_run import TEXTS
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

SPEC = ExtractSpec(chunk_size=12, batch_tokens=400, device="cpu")
POOLS = ("mean_response", "last_prompt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama"))


@pytest.fixture
def begun(folder):
    """A plan, a model and its engine."""
    capture = CaptureSpec(pools=POOLS)
    prepared = plan(TEXTS, model=folder, run="r", corpus="c", capture=capture, extract=SPEC)
    loaded = load_model(folder, device="cpu")
    engine = TransformersEngine(loaded, sites=("resid_post",), layers=range(4), pools=POOLS)
    return prepared, loaded, engine


def is_compiled(block):
    return hasattr(block.forward, "_torchdynamo_orig_callable") or hasattr(
        block.forward, "get_compiler_config"
    )


def test_hooks_fire_around_compiled_blocks_with_the_same_values(begun):
    prepared, loaded, engine = begun
    rows = prepared.rows[3:8]
    blocks = find_blocks(loaded.backbone)
    with engine.ready():
        wanted = engine.forward(rows)
        assert not any(is_compiled(block) for block in blocks)
        prove_compiled(engine, loaded.backbone, prepared, backend="aot_eager")
        assert all(is_compiled(block) for block in blocks)
        seen = engine.forward(rows)
    for name, reference in wanted.items():
        torch.testing.assert_close(seen[name], reference, rtol=1e-4, atol=1e-4)


def test_other_values_than_the_eager_ones_are_refused(begun):
    prepared, loaded, engine = begun

    def wrong(graph, _inputs):
        def run(*args):
            return tuple(
                out * 1.01 if isinstance(out, torch.Tensor) and out.is_floating_point() else out
                for out in graph.forward(*args)
            )

        return run

    with engine.ready(), pytest.raises(InvalidInputError, match=r"off by .*leave out --compile"):
        prove_compiled(engine, loaded.backbone, prepared, backend=wrong)


def test_hooks_that_are_lost_are_refused(begun, monkeypatch):
    """What a graph of the whole model would do: run it without the modules' hooks."""
    prepared, loaded, engine = begun

    def lose_hooks(network, **_options):
        for block in find_blocks(network):
            block._forward_hooks.clear()

    monkeypatch.setattr("actlake.extract.compiling.compile_blocks", lose_hooks)
    with engine.ready(), pytest.raises(InvalidInputError, match=r"did not happen.*leave out"):
        prove_compiled(engine, loaded.backbone, prepared)


def test_a_compiler_that_fails_is_one_line(begun):
    prepared, loaded, engine = begun

    def broken(_graph, _inputs):
        message = "no such kernel\nand more"
        raise RuntimeError(message)

    with engine.ready(), pytest.raises(InvalidInputError, match="cannot be compiled") as found:
        prove_compiled(engine, loaded.backbone, prepared, backend=broken)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("other", [{"engine": "vllm"}, {"device_map": "auto"}])
def test_compile_with_what_it_does_not_go_with_is_refused(other):
    with pytest.raises(InvalidInputError, match="compile is for the transformers engine"):
        ExtractSpec.parse({"compile": True, **other})


@pytest.mark.parametrize("site", ["attn_heads", "attn_out", "resid_mid", "mlp_out"])
def test_sites_inside_of_compiled_blocks_are_refused_before_weights_are_read(folder, site):
    capture = CaptureSpec(sites=("resid_post", site), pools=POOLS)
    spec = SPEC.model_copy(update={"compile": True})
    with pytest.raises(InvalidInputError, match=f"{site} is inside of them.*Leave out --compile"):
        plan(TEXTS, model=folder, run="r", corpus="c", capture=capture, extract=spec)


def test_sites_around_compiled_blocks_are_captured_from_one_compilation(folder):
    """A hook that names its layer would be compiled anew for each, and given up after eight."""
    sites = ("resid_pre", "resid_post")
    capture = CaptureSpec(sites=sites, pools=POOLS)
    spec = SPEC.model_copy(update={"compile": True})
    prepared = plan(TEXTS, model=folder, run="r", corpus="c", capture=capture, extract=spec)
    loaded = load_model(folder, device="cpu")
    engine = TransformersEngine(loaded, sites=sites, layers=range(4), pools=POOLS)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with engine.ready():
        prove_compiled(engine, loaded.backbone, prepared, backend="aot_eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts
def test_a_compiled_run_is_the_eager_run_and_says_so(tmp_path, folder):
    store = create_store(tmp_path / "store")
    info = corpus_info("c", TEXTS)
    for run, compiles in (("eager", False), ("compiled", True)):
        spec = SPEC.model_copy(update={"compile": compiles})
        extract_run(store, TEXTS, info, model=folder, run=run, extract=spec)
        notes = store.read_commits(run)[0].notes
        assert notes.get("compiled", False) is compiles
        assert verify_run(store, run, full=True).ok
    eager, compiled = (open_run(store, run).compute() for run in ("eager", "compiled"))
    for name in eager.data_vars:
        if name.startswith("resid_"):
            scale = float(np.abs(eager[name]).max())
            np.testing.assert_allclose(compiled[name], eager[name], rtol=1e-3, atol=1e-5 * scale)
