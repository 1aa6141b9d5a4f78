"""How figures, times and names are written on pages."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup, escape

from darkbloom_provider.coordinator.rest.replies import rfc3339_seconds
from darkbloom_provider.protocol.money import format_usd


def usd(micro_usd: int) -> Markup:
    """An amount, exact, with what is below a cent set smaller.

    >>> str(usd(4_821_200))
    '<span class="usd">$4.82<small>1200</small></span>'
    >>> str(usd(-1_234_567_890_000).striptags())
    '-$1,234,567.890000'
    """
    text = _apart(format_usd(micro_usd))
    return Markup('<span class="usd">{}<small>{}</small></span>').format(text[:-4], text[-4:])


def cents(micro_usd: int) -> str:
    """An amount that is only an estimate, with two decimals.

    >>> cents(12_345_678), cents(-1_239_999), cents(1_234_567_890_000)
    ('$12.34', '-$1.23', '$1,234,567.89')
    """
    return _apart(format_usd(micro_usd, 2))


def price(micro_usd_per_million: int) -> str:
    """A price per million tokens, with two decimals or as many as it needs.

    >>> price(780_000), price(65_000)
    ('$0.78', '$0.065')
    """
    text = format_usd(micro_usd_per_million)
    return text[:-4] + text[-4:].rstrip("0")


def scale(micro_usd: int) -> str:
    """A round amount beside a graph: cents where they say something.

    >>> scale(400_000_000_000), scale(1_500_000), scale(65)
    ('$400,000', '$1.50', '$0.000065')
    """
    text = _apart(price(micro_usd))
    return text.removesuffix(".00")


def count(number: int) -> str:
    """A whole number with its thousands apart.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number:,}"


def counted(number: int, what: str) -> str:
    """A number of things.

    >>> counted(1, "job"), counted(2000, "job")
    ('1 job', '2,000 jobs')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def model_name(model_id: str) -> str:
    """The last part of a model's id, by which people know it."""
    return model_id.rpartition("/")[2] or model_id


def masked(serial: str) -> str:
    """A serial number that its owner recognizes and nobody else can use.

    >>> masked("ABCDEFGHIJ")
    'ABCD••••IJ'
    """
    return f"{serial[:4]}••••{serial[-2:]}" if len(serial) > 6 else "••••"  # noqa: PLR2004 - what is shown


def commands(text: str) -> Markup:
    """A sentence in which what is to be typed stands between backquotes.

    >>> str(commands("Type: `darkbloom doctor`"))
    'Type: <code>darkbloom doctor</code>'
    """
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(parts)
    )


def ago(seconds: float) -> str:
    """How long something is past, roughly.

    >>> ago(3.4), ago(200), ago(7300), ago(200_000)
    ('3 s ago', '3 min ago', '2 h ago', '2 days ago')
    """
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def moment(instant: datetime) -> Markup:
    """A time, for people and for programs. The server knows no zone but UTC."""
    utc = instant.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        rfc3339_seconds(utc), f"{utc.day} {utc:%b %Y, %H:%M}"
    )


def _apart(amount: str) -> str:
    """An amount with its thousands apart."""
    head, point, rest = amount.partition(".")
    sign, _, dollars = head.partition("$")
    return f"{sign}${int(dollars):,}{point}{rest}"
