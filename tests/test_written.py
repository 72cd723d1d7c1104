"""Numbers as they are written: a slow second way, and what must never be seen."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest

from lightning_neurocorr.report import written as W
from lightning_neurocorr.report.declared import FORMATS, TEXTS

VALUES = [
    0.0, -0.0, 1.0, -1.0, 0.5, -0.004, 0.0049, 0.00501, 99.96, -1234.5, 12345.6, 3e7, -2e-30,
    8.7e-42,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("digits", [0, 1, 2, 3])
def test_fixed_digits_are_those_of_decimal_arithmetic(value: float, digits: int) -> None:
    expected = Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)
    for sign in (False, True):
        text = W.fixed(value, digits, sign=sign)
        assert Decimal(W.plain(text)) == expected
        assert text[0] == ("−" if expected < 0 else "+" if expected > 0 and sign else text[0])
        assert text.lstrip("+−")[0].isdigit()
        assert expected or text[0] == "0"


@pytest.mark.parametrize("value", VALUES)
def test_every_format_keeps_the_leading_digits(value: float) -> None:
    digits = {"number": 5e-3, "signed": 0.5, "small": 5e-2}
    for format, tolerance in digits.items():  # noqa: A001
        found = float(W.plain(W.written(value, format)))
        assert found == pytest.approx(value, rel=tolerance, abs=0 if format != "signed" else 5e-4)
        assert math.copysign(1, found) == (math.copysign(1, value) if value else 1)
    assert W.written(value, "count").replace(",", "") == W.written(value, "step")
    assert float(W.plain(W.written(value, "share")).rstrip("%")) == round(100 * value, 1)


def test_what_is_undefined_is_said_so_in_every_format() -> None:
    assert {W.written(math.nan, kind) for kind in FORMATS if kind not in TEXTS} == {"n/a"}
    assert {W.written(None, kind) for kind in FORMATS} == {"n/a"}
    said = [W.written(value, "yes_no") for value in (True, np.bool_(False), 1.0, 0)]
    assert said == ["yes", "no", "yes", "no"]
    assert W.written(-math.inf) == "−inf"
    assert (
        W.written("a\x1b[2J\nb", "text")
        == "a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}b"
    )
    with pytest.raises(KeyError, match="percent"):
        W.written(1.0, "percent")


def test_a_true_minus_comes_and_goes() -> None:
    assert W.typeset("p = 8.7e-42, non-trivial e-mail") == "p = 8.7e−42, non-trivial e-mail"
    for value in VALUES:
        assert "-" not in W.written(value, "signed") + W.written(value) + W.small(value)
        assert W.plain(W.small(abs(value))) == f"{abs(value):.2g}"
