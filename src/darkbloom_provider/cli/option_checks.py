"""Checks of what was typed behind an option, as click's callbacks: a value, or `BadParameter`."""

from __future__ import annotations

import ipaddress
import re

import click


def hashes(_ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> frozenset[str]:
    """SHA-256 hashes in hex."""
    for text in texts:
        if re.fullmatch(r"[0-9a-f]{64}", text) is None:
            # One that matches nothing would keep every provider out without a word.
            raise click.BadParameter(f"{text!r} is not 64 hex digits, lower case", param=option)
    return frozenset(texts)


def template_hashes(
    ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str]:
    """SHA-256 hashes in hex, each with its name."""
    pairs = [text.rpartition("=") for text in texts]
    for text, (name, _, _) in zip(texts, pairs, strict=True):
        if not name:
            raise click.BadParameter(f"{text!r} is not like chatml=HASH", param=option)
    hashes(ctx, option, tuple(digest for _, _, digest in pairs))
    return {name: digest for name, _, digest in pairs}


def version(_ctx: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """A version in dotted numbers."""
    if text is not None and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}", text) is None:
        raise click.BadParameter(f"{text!r} is not like 0.4.7", param=option)
    return text


def networks(
    _ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    """Addresses of machines, or networks of them."""
    for text in texts:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is not like 127.0.0.1 or 10.0.0.0/8", param=option
            ) from None
    return texts


def web_address(_ctx: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """An origin."""
    # Only an origin: cookies, forms and links are made for the whole of one.
    if text is not None and re.fullmatch(r"https?://[^/?#\s@]+/?", text) is None:
        raise click.BadParameter(f"{text!r} is not like https://console.example.org", param=option)
    return text
