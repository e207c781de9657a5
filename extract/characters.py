"""The characters of the tokens of a run that was stored without them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..schemas import CaptureSpec, InvalidInputError, NotFoundError, Text
from .loading import load_model
from .rendering import render_texts

__all__ = ["add_token_characters"]


def add_token_characters(
    ds: xr.Dataset,
    texts: Sequence[Text],
    *,
    model: str,
    capture: CaptureSpec,
    revision: str | None = None,
) -> xr.Dataset:
    """Return an opened run with the coordinates ``token_start`` and ``token_stop``.

    The texts are tokenised once more, and nothing is taken over unless every token id is the one
    that was stored. Needs the tokenizer and no weights.

    Parameters
    ----------
    ds
        An opened run with token arrays.
    texts
        Its corpus.
    model
        Whose tokenizer made the run: ``bundled:NAME``, a local folder, or a hub id.
    capture
        The capture of the run's plan.
    revision
        Branch, tag or commit of a hub model.

    Raises
    ------
    NotFoundError
        If a text of the run is not in the corpus.
    InvalidInputError
        If the tokens are not those of the run.
    """
    by_id = {text.id: text for text in texts}
    names = [str(name) for name in ds["text"].values]
    missing = [name for name in names if name not in by_id]
    if missing:
        msg = f"{len(missing)} texts of the run are not in the corpus, the first is {missing[0]!r}"
        raise NotFoundError(msg)
    loaded = load_model(model, revision=revision, weights=False)
    rows = render_texts(
        [by_id[name] for name in names],
        loaded.tokenizer,
        spec=capture,
        max_positions=loaded.max_positions,
    )
    stored, edges = ds["token_id"].values, ds["token_offset"].values
    for row, start, stop in zip(rows, edges[:-1], edges[1:], strict=True):
        if not np.array_equal(row.ids, stored[start:stop]):
            msg = (
                f"text {row.text.id!r}: the tokenizer of {model!r} makes other tokens of it than "
                f"the run has ({row.n_tokens} against {stop - start}); name the model and the "
                "revision that the run was extracted with"
            )
            raise InvalidInputError(msg)
    chars = np.concatenate([row.chars for row in rows])
    return ds.assign_coords(token_start=("token", chars[:, 0]), token_stop=("token", chars[:, 1]))
