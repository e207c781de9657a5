"""The command that looks at a model before it is run: extract check."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from .console import emit, json_option, print_table

__all__ = ["ExtractGroup", "check"]


class ExtractGroup(click.Group):
    """``extract MODEL`` is ``extract run MODEL``; the other commands go by their names.

    So is ``steer STORE RUN`` ``steer run STORE RUN``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` before arguments that name no command and ask for no help."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.command()
@click.argument("model")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--dtype", default="auto", help="auto, float32, bfloat16 or float16.")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--attn", "attn_implementation", help="eager, sdpa, flash_attention_2.")
@json_option
def check(
    model: str,
    *,
    revision: str | None,
    dtype: str,
    device: str,
    attn_implementation: str | None,
    as_json: bool,
) -> None:
    """Say whether activations of MODEL can be trusted; store nothing.

    Runs a few texts: which sites there are, whether captures are what the library computes,
    whether padding and early exit change anything, special tokens. Exit status 1 if not.

    \b
    Example: actlake extract check google/gemma-2-2b-it
    """
    from .extract import check_model, load_model

    loaded = load_model(
        model,
        revision=revision,
        dtype=dtype,
        device=device,
        attn_implementation=attn_implementation,
        head=True,
    )
    checks = check_model(loaded)
    failed = [c.name for c in checks if not c.ok]
    info = loaded.info
    value = {
        "model": info.name,
        "architecture": info.architecture,
        "dtype": info.dtype,
        "ok": not failed,
        "checks": [asdict(c) for c in checks],
    }

    def show() -> None:
        rows = [
            {"check": c.name, "verdict": "ok" if c.ok else "FAILED", "what was seen": c.seen}
            for c in checks
        ]
        print_table(rows)
        of = f"{info.name} ({info.architecture}, {info.dtype})"
        click.echo(f"\n{of}: {'sound' if not failed else 'do not trust: ' + ', '.join(failed)}")

    emit(value, as_json=as_json, show=show)
    if failed:
        sys.exit(1)
