"""How numbers and names are written: the one place for digits, signs and what is undefined.

Numbers have a true minus sign, at which no line breaks, and no sign before zero.
"""

from __future__ import annotations

import math
import re
from typing import Any

from lightning_neurocorr.report.declared import TEXTS

MINUS = "−"
UNDEFINED = "n/a"


def written(value: Any, format: str = "number") -> str:  # noqa: A002 -- the word of `Column`
    """A value as its column says that it is written.

    Args:
        value: A number, or a text where ``format`` is one of texts; None is undefined.
        format: See :class:`~lightning_neurocorr.report.declared.Column`.

    Raises:
        KeyError: If the format is unknown.

    Examples:
        >>> [written(0.25, how) for how in ("number", "signed", "small", "share", "step")]
        ['0.250', '+0.250', '0.25', '25.0%', '0']
        >>> written(True, "yes_no")
        'yes'
    """
    if value is None:
        return UNDEFINED
    return printable(str(value)) if format in TEXTS else _NUMBERS[format](float(value))


def counted(number: int, one: str, many: str = "") -> str:
    """So many of something.

    Examples:
        >>> counted(1, "neuron"), counted(1097, "sample"), counted(2, "is", "are")
        ('1 neuron', '1,097 samples', '2 are')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def fixed(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """With so many digits after the point.

    Examples:
        >>> fixed(-0.126), fixed(1.5, sign=True), fixed(-0.001, sign=True), fixed(float("nan"))
        ('−0.13', '+1.50', '0.00', 'n/a')
    """
    return _signed(f"{abs(value):.{digits}f}", value, plus=sign)


def signed(value: float, digits: int = 3) -> str:
    """With its sign and so many digits after the point; an exponent where that would show nothing.

    Examples:
        >>> signed(0.5), signed(-1e-5), signed(0.0), signed(2e7)
        ('+0.500', '−1e−05', '0.000', '+2e+07')
    """
    if not value or 0.5 * 10**-digits <= abs(value) < 1e4:
        return fixed(value, digits, sign=True)
    return _signed(f"{abs(value):.0e}", value, plus=True)


def small(value: float) -> str:
    """A p or a q, with two digits.

    Examples:
        >>> small(0.0312), small(8.71e-42)
        ('0.031', '8.7e−42')
    """
    return _signed(f"{abs(value):.2g}", value)


def significant(value: float) -> str:
    """With three digits in all, without an exponent where that is short.

    Examples:
        >>> significant(4.0), significant(12345.6), significant(-0.0123), significant(1.5e-7)
        ('4.00', '12346', '−0.0123', '1.50e−07')
    """
    text = f"{abs(value):#.3g}"
    short = "e" in text and 1 <= abs(value) < 1e5
    return _signed(f"{abs(value):.0f}" if short else text.rstrip("."), value)


def share(value: float) -> str:
    """A part of 1, in percent.

    Examples:
        >>> share(0.1234)
        '12.3%'
    """
    return UNDEFINED if math.isnan(value) else f"{fixed(100 * value, 1)}%"


def count(value: float) -> str:
    """A whole number, its thousands apart.

    Examples:
        >>> count(1234567.0)
        '1,234,567'
    """
    return _signed(f"{abs(value):,.0f}", value)


def step(value: float) -> str:
    """A step of training, an id rather than a quantity: thousands are not set apart."""
    return fixed(value, 0)


def yes_no(value: float) -> str:
    """Whether something is so: 0 is no, all else yes."""
    return UNDEFINED if math.isnan(value) else "yes" if value else "no"


_NUMBERS = {
    "number": significant,
    "signed": signed,
    "small": small,
    "count": count,
    "share": share,
    "step": step,
    "yes_no": yes_no,
}


def _signed(text: str, value: float, *, plus: bool = False) -> str:
    """The digits of a number with its sign; zero has none."""
    if math.isnan(value):
        return UNDEFINED
    text = text.replace("e-", f"e{MINUS}")
    if not any(digit in text for digit in "123456789i"):  # i as in inf
        return text
    return f"{MINUS if value < 0 else '+' if plus else ''}{text}"


def typeset(sentence: str) -> str:
    """A plain sentence with a true minus in its exponents: ``p = 8.7e−42``."""
    return re.sub(r"(?<=\de)-(?=\d)", MINUS, sentence)


def plain(text: str) -> str:
    """Text for terminals and sentences that are kept, whose encoding may lack the true minus."""
    return text.replace(MINUS, "-")


def printable(text: str) -> str:
    """Text that moves no cursor and breaks no line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
