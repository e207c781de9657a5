"""Interventions on a running model: what is written, where, and how strongly per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..extract import find_blocks, replace_hidden, unwrap_hidden
from ..extract.blocks import backbone_of
from ..extract.sites import find_taps, proven_sites
from ..schemas import InvalidInputError
from .operators import apply_operator, check_operator
from .positions import Positions

__all__ = ["Intervention", "check_intervention", "intervene"]

_STREAM = {"resid_pre", "resid_post"}  # a block's own input and output: nothing to prove
_PROVEN: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
_Place: TypeAlias = tuple[int, str]


@dataclass(frozen=True)
class Intervention:
    """One write to one site of one or several layers, each row of the batch with its own strength.

    Parameters
    ----------
    operator
        See :func:`~actlake.steer.operators.apply_operator`.
    layers
        Block indices; only these change.
    strengths
        (row,) finite numbers. For ``set`` the coordinate to set; for every other operator 0
        leaves a row bitwise as it is.
    positions
        The tokens that are touched.
    vectors
        (hidden,) for all rows, (row, hidden), or (row, rank, hidden) for a subspace.
    source
        States to write, (row, hidden) for every touched token of a row, or (row, column, hidden)
        over the planned columns.
    site
        Where in the block.
    rows
        (row,) bool: the rows that are touched; None touches all.
    """

    operator: str
    layers: tuple[int, ...]
    strengths: torch.Tensor
    positions: Positions
    vectors: torch.Tensor | None = None
    source: torch.Tensor | None = None
    site: str = "resid_post"
    rows: torch.Tensor | None = None

    @property
    def basis(self) -> torch.Tensor | None:
        """The directions as (row or 1, rank, hidden), None where there are none."""
        v = self.vectors
        if v is None or v.ndim == 3:
            return v
        return v[None, None] if v.ndim == 1 else v[:, None]

    @property
    def touched_rows(self) -> torch.Tensor:
        """(row,) bool: rows that any forward pass changes."""
        rows = torch.ones(len(self.strengths), dtype=torch.bool) if self.rows is None else self.rows
        # Setting a coordinate to 0 is a change; a strength of 0 is none for all others.
        return rows if self.operator == "set" else rows & (self.strengths.cpu() != 0)


@dataclass
class _Pass:
    """Where the forward pass under way begins, in columns of the batch."""

    start: int = 0
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)  # of blocks, by layer


@contextmanager
def intervene(model: nn.Module, interventions: Sequence[Intervention]) -> Iterator[None]:
    """Apply ``interventions`` to every forward pass of ``model`` while the context lasts.

    The batch must be the one that the interventions were planned for; it may be run whole, with
    a cache token by token, or in pieces. Several at one place act in the order given. Rows that
    nothing touches are bitwise what they are without a hook. The hooks come off whatever happens.

    Raises
    ------
    InvalidInputError
        If a layer or site does not exist, a width does not fit the model, a strength is not
        finite, or (while running) the batch has another shape than the one planned for.
    """
    backbone = backbone_of(model)
    blocks = find_blocks(backbone)
    hidden_size = int(backbone.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]
    for wanted in interventions:
        check_intervention(wanted, n_layers=len(blocks), hidden_size=hidden_size)
        _check_site(wanted.site, backbone=backbone, blocks=blocks)
    places: dict[_Place, list[Intervention]] = {}
    for wanted in interventions:
        for layer in wanted.layers:
            places.setdefault((layer, wanted.site), []).append(wanted)
    now = _Pass()
    with ExitStack() as hooks:
        note = backbone.register_forward_pre_hook(partial(_note_start, now), with_kwargs=True)
        hooks.callback(note.remove)
        # A block's input is edited before it is remembered for the site in its middle.
        for layer, site in sorted(places, key=lambda place: place[1] != "resid_pre"):
            write = partial(_write, places[layer, site], now)
            for handle in _attach(blocks[layer], site, layer=layer, write=write, now=now):
                hooks.callback(handle.remove)
        yield


def check_intervention(wanted: Intervention, *, n_layers: int, hidden_size: int) -> None:
    """Raise InvalidInputError where an intervention does not fit itself or a model of that size."""
    n_rows = len(wanted.strengths)
    beyond = [layer for layer in wanted.layers if not 0 <= layer < n_layers]
    if beyond or not wanted.layers:
        msg = f"layers {beyond} do not exist; the model has layers 0 to {n_layers - 1}"
        raise InvalidInputError(msg)
    widths = {
        name: tensor.shape[-1]
        for name, tensor in (("direction", wanted.vectors), ("source", wanted.source))
        if tensor is not None
    }
    wrong = next((name for name, width in widths.items() if width != hidden_size), None)
    if wrong:
        msg = f"the {wrong} is {widths[wrong]} wide, the model {hidden_size}"
        raise InvalidInputError(msg)
    check_operator(wanted.operator, basis=wanted.basis, source=wanted.source)
    parts: Mapping[str, torch.Tensor | None] = {
        "strengths": wanted.strengths,
        "vectors": wanted.vectors
        if wanted.vectors is not None and wanted.vectors.ndim > 1
        else None,
        "source": wanted.source,
        "rows": wanted.rows,
        "positions": wanted.positions.planned,
    }
    sizes = {name: len(part) for name, part in parts.items() if part is not None}
    if any(n not in {n_rows, 1 if name == "vectors" else n_rows} for name, n in sizes.items()):
        msg = f"the parts of an intervention have unlike numbers of rows: {sizes}"
        raise InvalidInputError(msg)
    for name in ("strengths", "vectors", "source"):
        part = parts[name] if name != "vectors" else wanted.vectors
        if part is not None and not torch.isfinite(part).all():
            msg = f"{name} of an intervention must be finite numbers"
            raise InvalidInputError(msg)
    if wanted.source is not None and wanted.source.ndim == 3:
        shape, planned = tuple(wanted.source.shape[:2]), tuple(wanted.positions.planned.shape)
        if shape != planned or wanted.positions.generated:
            msg = f"the source has rows x columns {shape}, the planned columns are {planned}"
            raise InvalidInputError(msg)


def _check_site(site: str, *, backbone: nn.Module, blocks: Sequence[nn.Module]) -> None:
    if site in _STREAM:
        return
    if backbone not in _PROVEN:
        found = proven_sites(backbone, blocks)
        # Heads are as wide as the attention, not as the stream that directions live in.
        _PROVEN[backbone] = [name for name in found if name != "attn_heads"]
    if site not in _PROVEN[backbone]:
        there = ", ".join(_PROVEN[backbone])
        msg = f"{type(backbone).__name__} has no site {site}; it has {there}"
        raise InvalidInputError(msg)


def _note_start(
    now: _Pass, _module: nn.Module, _args: tuple[object, ...], kwargs: dict[str, Any]
) -> None:
    """Remember how many columns the cache holds: the pass under way begins behind them."""
    cache = kwargs.get("past_key_values")
    now.start = 0 if cache is None else int(cache.get_seq_length())


def _attach(
    block: nn.Module, site: str, *, layer: int, write: partial[torch.Tensor], now: _Pass
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hang ``write`` at a site of a block."""

    def on_output(_module: nn.Module, _args: object, output: object) -> object:
        return replace_hidden(output, write(unwrap_hidden(output)))

    def on_input(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (write(unwrap_hidden(args[0])), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: write(unwrap_hidden(kwargs[name]))}

    def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        now.inputs[layer] = unwrap_hidden(args[0] if args else next(iter(kwargs.values())))

    def on_sum(_module: nn.Module, _args: object, output: object) -> object:
        # The stream between the sublayers has no module of its own: what it is to become is
        # written into what attention adds to it.
        added = unwrap_hidden(output)
        middle = now.inputs.pop(layer) + added
        changed = write(middle)
        kept = (changed == middle).all(dim=-1, keepdim=True)
        return replace_hidden(output, torch.where(kept, added, added + (changed - middle)))

    if site == "resid_pre":
        return [block.register_forward_pre_hook(on_input, with_kwargs=True)]
    if site == "resid_post":
        return [block.register_forward_hook(on_output)]
    if site == "resid_mid":
        return [
            block.register_forward_pre_hook(remember, with_kwargs=True),
            find_taps(block)["attn_out"].module.register_forward_hook(on_sum),
        ]
    return [find_taps(block)[site].module.register_forward_hook(on_output)]


def _write(interventions: Sequence[Intervention], now: _Pass, hidden: torch.Tensor) -> torch.Tensor:
    """Return ``hidden`` (row, token, hidden) as the interventions of one place leave it."""
    n_rows, n_tokens = hidden.shape[:2]
    for wanted in interventions:
        planned = wanted.positions.planned.shape
        if n_rows != planned[0] or (now.start == 0 and n_tokens < planned[1]):
            msg = (
                f"the intervention was planned for rows x tokens {tuple(planned)}"
                f", the block sees {(n_rows, n_tokens)} from column {now.start} on"
            )
            raise InvalidInputError(msg)
        where = wanted.positions.columns(now.start, now.start + n_tokens)
        where = (where & wanted.touched_rows[:, None].to(where.device)).to(hidden.device)
        source = wanted.source
        if source is not None and source.ndim == 3:
            width = max(0, min(n_tokens, planned[1] - now.start))
            padded = source.new_zeros(n_rows, n_tokens, source.shape[-1])
            padded[:, :width] = source[:, now.start : now.start + width]
            source = padded
        elif source is not None:
            source = source[:, None]
        written = apply_operator(
            wanted.operator, hidden, strength=wanted.strengths, basis=wanted.basis, source=source
        )
        hidden = torch.where(where[..., None], written.to(hidden.dtype), hidden)
    return hidden
