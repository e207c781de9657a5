"""Contrasts as token rows of equal length, so that states of one run fit into another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..extract import LoadedModel, TokenRow, render_texts
from ..schemas import CaptureSpec, Contrast, InvalidInputError, Place, Text

__all__ = ["COMPLETIONS", "AlignedCase", "align_contrasts"]

COMPLETIONS = ("positive", "negative")
_ROLES = ("source", "base", "same_class")
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class AlignedCase:
    """One contrast as tokens.

    ``prompts`` holds a row of ids per role, all of one length; from column ``shared`` on they are
    the same. ``completions`` are the positive and the negative one; ``bos`` says whether column 0
    is a BOS.
    """

    contrast: Contrast
    prompts: Mapping[str, Ids]
    completions: tuple[Ids, Ids]
    shared: int
    bos: bool

    @property
    def n_prompt(self) -> int:
        """Tokens of each prompt."""
        return len(self.prompts["base"])

    @property
    def n_columns(self) -> int:
        """Tokens of the prompt with the longer completion."""
        return self.n_prompt + max(len(ids) for ids in self.completions)

    def columns(self, place: Place, completion: int) -> npt.NDArray[np.bool_]:
        """Return which of ``n_columns`` columns a place means beside a completion, bool.

        The BOS is never among them.

        Raises
        ------
        InvalidInputError
            If a single token lies before the suffix that all prompts share.
        """
        index = np.arange(self.n_columns)
        end = self.n_prompt + len(self.completions[completion])
        if isinstance(place, int):
            at = self.n_prompt + place
            if at < self.shared:
                msg = (
                    f"contrast {self.contrast.id!r}: position {place} lies before the "
                    f"{self.n_prompt - self.shared} tokens that its prompts share at their end"
                )
                raise InvalidInputError(msg)
            return np.asarray(index == at)
        masks = {
            "prompt-last": index == self.n_prompt - 1,
            "suffix": (index >= self.shared) & (index < self.n_prompt),
            "prompt-all": index < self.n_prompt,
            "response": (index >= self.n_prompt) & (index < end),
            "all": index < end,
        }
        return np.asarray(masks[place] & ~((index == 0) & self.bos))


def align_contrasts(
    loaded: LoadedModel, contrasts: Sequence[Contrast], *, render: str = "auto"
) -> list[AlignedCase]:
    """Return the contrasts as tokens, in the order given.

    Raises
    ------
    InvalidInputError
        If there is none, an id stands twice, the prompts of a contrast have unlike lengths or no
        shared end, or a completion is tokenised otherwise behind one prompt than another.
    """
    names = [contrast.id for contrast in contrasts]
    if not names or len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        msg = f"got {len(names)} contrasts, these ids twice: {twice}; expected each once"
        raise InvalidInputError(msg)
    texts = [
        Text(id=f"{i}.{role}.{arm}", system=system, prompt=contrast.prompt, response=response)
        for i, contrast in enumerate(contrasts)
        for role, system in _systems(contrast).items()
        for arm, response in zip(COMPLETIONS, (contrast.positive, contrast.negative), strict=True)
    ]
    spec = CaptureSpec.parse({"render": render, "pools": ["mean_response"]})
    rows = {
        row.text.id: row
        for row in render_texts(
            texts, loaded.tokenizer, spec=spec, max_positions=loaded.max_positions
        )
    }
    bos = loaded.tokenizer.bos_token_id
    return [_align(i, contrast, rows, bos=bos) for i, contrast in enumerate(contrasts)]


def _systems(contrast: Contrast) -> dict[str, str]:
    given = {role: getattr(contrast, role) for role in _ROLES}
    return {role: system for role, system in given.items() if system is not None}


def _align(
    number: int, contrast: Contrast, rows: Mapping[str, TokenRow], *, bos: int | None
) -> AlignedCase:
    prompts: dict[str, Ids] = {}
    completions: list[Ids] = []
    for role in _systems(contrast):
        pair = [rows[f"{number}.{role}.{arm}"] for arm in COMPLETIONS]
        starts = [row.ids[: row.n_prompt] for row in pair]
        answers = [row.ids[row.n_prompt : _end(row)] for row in pair]
        if not np.array_equal(starts[0], starts[1]):
            msg = (
                f"contrast {contrast.id!r}: the {role} prompt has other tokens before its two "
                "completions; begin both with a space, or with the same word"
            )
            raise InvalidInputError(msg)
        unlike = completions and not all(map(np.array_equal, completions, answers))
        if unlike:
            msg = f"contrast {contrast.id!r}: behind its prompts a completion has unlike tokens"
            raise InvalidInputError(msg)
        prompts[role], completions = starts[0], answers
    lengths = {role: len(ids) for role, ids in prompts.items()}
    if len(set(lengths.values())) > 1:
        msg = (
            f"contrast {contrast.id!r} is not aligned: its prompts have {lengths} tokens; "
            "patching writes states of one run into another token by token, so choose system "
            "prompts of as many tokens"
        )
        raise InvalidInputError(msg)
    stacked = np.stack(list(prompts.values()))
    unlike_columns = np.flatnonzero((stacked != stacked[0]).any(axis=0))
    if not unlike_columns.size or unlike_columns[-1] == stacked.shape[1] - 1:
        what = "are the same tokens" if not unlike_columns.size else "share no last token"
        msg = f"contrast {contrast.id!r}: its prompts {what}; contrast only the system prompt"
        raise InvalidInputError(msg)
    return AlignedCase(
        contrast=contrast,
        prompts=prompts,
        completions=(completions[0], completions[1]),
        shared=int(unlike_columns[-1]) + 1,
        bos=bos is not None and int(stacked[0, 0]) == bos,
    )


def _end(row: TokenRow) -> int:
    """Return the column behind the response's last token: what the template adds is no answer."""
    return int(np.flatnonzero(row.response)[-1]) + 1
