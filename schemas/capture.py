"""What is captured from a model: sites, layers, pools."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .base import Record, check_distinct

__all__ = [
    "CaptureSpec",
    "Dtype",
    "Pool",
    "Rendering",
    "Site",
    "SpanPool",
    "TokenCapture",
    "array_name",
    "norm_name",
    "span_of",
]

Site = Literal["resid_pre", "attn_heads", "attn_out", "resid_mid", "mlp_out", "resid_post"]
Pool = Literal[
    "mean_response",
    "mean_prompt",
    "mean_prompt_with_bos",
    "mean_all",
    "mean_all_with_bos",
    "first_response",
    "last_response",
    "last_prompt",
    "first_token",
    "max_abs",
]
SpanPool = Annotated[str, StringConstraints(pattern=r"^mean_span:[a-z][a-z0-9_]{0,39}$")]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Rendering = Literal["auto", "chat", "plain"]
MAX_LAYERS = 4096  # of any model; a record that names more is none


Layers = (
    Literal["all"]
    | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=MAX_LAYERS)]
)


class TokenCapture(Record):
    """Which sites and layers are stored token by token, beside their pools.

    All tokens of a text are, prompt, response and special ones; coordinates over ``token`` say
    which is which. Sites and layers are some of those of the capture.
    """

    sites: Annotated[tuple[Site, ...], Field(min_length=1)] = ("resid_post",)
    layers: Layers = "all"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _check_distinct({"tokens.sites": self.sites, "tokens.layers": self.layers})
        return self


def _check_distinct(lists: dict[str, Any]) -> None:
    for name, values in lists.items():
        check_distinct(name, values)
        if values != "all" and not values:
            msg = f"{name} is empty: name at least one, or 'all'"
            raise ValueError(msg)


class CaptureSpec(Record):
    """The part of a run that decides which numbers are stored.

    ``attn_heads`` is what the heads give before the output projection, one after another. In
    models that normalise after each sublayer, such as BERT, the stream is what the norms give:
    ``resid_mid`` is norm(``resid_pre`` + ``attn_out``), ``resid_post`` norm(``resid_mid`` +
    ``mlp_out``).
    ``layers`` are block indices from 0; ``resid_post`` of layer L is the output of block L,
    before any final norm. ``render`` decides how a text becomes tokens: ``chat`` through the
    tokenizer's chat template, ``plain`` as system + prompt + response joined as they are,
    ``auto`` as chat where the tokenizer has a template and the text has a prompt.
    Special tokens (BOS, turn markers, EOS) stay out of every mean and of ``max_abs``, the largest
    magnitude of each coordinate; the pools ``_with_bos`` let the BOS in, to replicate studies
    that did. ``mean_span:NAME`` is the mean over the tokens that overlap the spans NAME of each
    text, which every text must have. ``first_token`` is the first token whatever it is: an
    encoder's [CLS], the BOS.
    """

    encoding_type: ClassVar[str] = "actlake-capture"

    sites: Annotated[tuple[Site, ...], Field(min_length=1)] = ("resid_post",)
    layers: Layers = "all"
    pools: Annotated[tuple[Pool | SpanPool, ...], Field(min_length=1)] = (
        "mean_response",
        "last_prompt",
        "last_response",
    )
    dtype: Dtype = "auto"
    render: Rendering = "auto"
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    truncate: bool = False
    # Not written where there is none: plan ids stay.
    tokens: TokenCapture | None = Field(None, exclude_if=lambda tokens: tokens is None)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _check_distinct({"sites": self.sites, "pools": self.pools, "layers": self.layers})
        if self.tokens is None:
            return self
        other = [site for site in self.tokens.sites if site not in self.sites]
        if other:
            msg = f"tokens.sites names {other[0]!r}, which sites does not: {list(self.sites)}"
            raise ValueError(msg)
        if self.layers != "all" and self.tokens.layers != "all":
            beyond = sorted(set(self.tokens.layers) - set(self.layers))
            if beyond:
                msg = f"tokens.layers names {beyond}, which layers does not"
                raise ValueError(msg)
        return self


def array_name(site: str, pool: str) -> str:
    """Return the name of the array that holds ``pool`` of ``site``."""
    return f"{site}_{pool.replace(':', '_')}"


def span_of(pool: str) -> str | None:
    """Return NAME of the pool ``mean_span:NAME``, None of any other."""
    return pool.removeprefix("mean_span:") if pool.startswith("mean_span:") else None


def norm_name(site: str, *, with_bos: bool = False) -> str:
    """Return the name of the array with the mean norm of ``site`` over a text's tokens.

    Special tokens are left out, the BOS too unless ``with_bos``.
    """
    return f"{site}_norm_with_bos" if with_bos else f"{site}_norm"
