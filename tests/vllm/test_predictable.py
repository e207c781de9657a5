"""Every row, position and layer on a model whose answer is known (ENGINES)."""

import numpy as np
import pytest

from actlake.extract import TokenRow, VllmEngine, load_model
from actlake.schemas import InvalidInputError, Text
from tests.extract.tiny import tiny_tokenizer
from tests.vllm.folders import STEP, predictable_folder

pytestmark = pytest.mark.vllm

N_ROWS, N_POSITIONS = 40, 64
LAYERS = (0, 2, 4)
POOLS = ("mean_response", "mean_all", "last_prompt", "first_response", "last_response", "max_abs")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = predictable_folder(
        tmp_path_factory.mktemp("model") / "predictable", n_rows=N_ROWS, n_positions=N_POSITIONS
    )
    tiny_tokenizer().save_pretrained(folder)
    return load_model(str(folder), weights=False)


@pytest.fixture(scope="module")
def rows():
    """Texts of very mixed length, in mixed order, no two with a token in common."""
    rng = np.random.default_rng(0)
    lengths = [2, N_POSITIONS, 3, 5, N_POSITIONS - 1, *rng.integers(2, N_POSITIONS, N_ROWS - 5)]
    made = []
    for row, n in enumerate(int(n) for n in rng.permutation(lengths)):
        ids = np.arange(row * N_POSITIONS, row * N_POSITIONS + n, dtype=np.int32)
        response = np.arange(n) >= rng.integers(1, n)
        special = np.zeros(n, dtype=bool)
        made.append(TokenRow(Text(id=f"t{row}", response="x"), ids, special, response, n))
    return made


def answer(rows, pool, *, site):
    """What the predictable model holds, (row, layer, hidden)."""
    out = np.zeros((len(rows), len(LAYERS), 64))
    for i, row in enumerate(rows):
        at = {
            "mean_response": np.flatnonzero(row.response),
            "mean_all": np.arange(row.n_tokens),
            "max_abs": np.array([row.n_tokens - 1]),  # the position is what grows
            "last_prompt": np.array([row.n_prompt - 1]),
            "first_response": np.array([row.n_prompt]),
            "last_response": np.array([row.n_tokens - 1]),
        }[pool]
        for j, layer in enumerate(LAYERS):
            n_steps = layer + 1 if site == "resid_post" else layer
            out[i, j, :4] = i, at.mean(), 1, STEP * n_steps * (n_steps + 1) / 2
    return out


def check(loaded, rows, **options):
    """Run all rows twice and compare every value with the answer."""
    engine = VllmEngine(
        loaded, sites=("resid_pre", "resid_post"), layers=LAYERS, pools=POOLS,
        longest=max(row.n_tokens for row in rows), **options,
    )  # fmt: skip
    with engine.ready():
        for chosen in (rows, rows[3:9]):
            seen = engine.forward(chosen)
            for site in ("resid_pre", "resid_post"):
                for pool in POOLS:
                    wanted = answer(rows, pool, site=site)[rows.index(chosen[0]) :][: len(chosen)]
                    got = seen[f"{site}_{pool}"].numpy()
                    np.testing.assert_allclose(got, wanted, rtol=1e-6, err_msg=f"{site} {pool}")
                stream = [
                    np.linalg.norm(
                        np.stack([
                            np.full(row.n_tokens, int(row.ids[0]) // N_POSITIONS),
                            np.arange(row.n_tokens),
                            np.ones(row.n_tokens),
                            np.full(row.n_tokens, answer([row], "mean_all", site=site)[0, -1, 3]),
                        ]),
                        axis=0,
                    ).mean()
                    for row in chosen
                ]  # fmt: skip
                np.testing.assert_allclose(seen[f"{site}_norm"][:, -1], stream, rtol=1e-5)
    return engine


@pytest.mark.parametrize("batch_tokens", [16, 64, 2048])
def test_every_value_is_known_at_any_size_of_batch(loaded, rows, batch_tokens):
    engine = check(loaded, rows, batch_tokens=batch_tokens, options={"max_num_seqs": 3})
    n_tokens = sum(row.n_tokens for row in rows) + sum(row.n_tokens for row in rows[3:9])
    assert engine.n_steps >= n_tokens / batch_tokens
    assert engine.n_steps >= (N_ROWS + 6) / 3  # more requests than run at once
    assert engine.n_recomputed == 0


def test_rows_that_vllm_preempts_and_begins_again_are_captured_once(loaded, rows):
    engine = check(
        loaded, rows, batch_tokens=48,
        options={
            # Six texts are begun side by side, with room for the keys and values of three.
            "num_gpu_blocks_override": 8, "block_size": 32, "scheduler_reserve_full_isl": False,
            "long_prefill_token_threshold": 8,
        },
    )  # fmt: skip
    assert engine.n_recomputed > 0


def test_ranks_of_tensor_parallelism_agree(loaded, rows):
    check(loaded, rows, batch_tokens=64, tensor_parallel=2)


def test_tokens_that_come_from_a_cache_are_an_error_and_not_a_gap(loaded, rows):
    engine = VllmEngine(
        loaded, sites=("resid_post",), layers=LAYERS, pools=("mean_all",), longest=N_POSITIONS,
        batch_tokens=64, options={"enable_prefix_caching": True, "block_size": 32},
    )  # fmt: skip
    with engine.ready():
        engine.forward(rows)
        with pytest.raises(InvalidInputError, match="tokens from a cache are not captured"):
            engine.forward(rows)
        # The engine lives on: texts that no cache holds run as before.
        short = [row for row in rows if row.n_tokens < 32]
        seen = engine.forward(short)["resid_post_mean_all"].numpy()
    wanted = answer(rows, "mean_all", site="resid_post")[[rows.index(row) for row in short]]
    np.testing.assert_allclose(seen, wanted, rtol=1e-6)
