"""What pyproject.toml says is enough, and what CI installs to try it, are the same versions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PINS = dict(
    re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / ".github" / "oldest.txt").read_text(), re.MULTILINE)
)
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
BOUNDS = dict(re.findall(r'^ *"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', PROJECT, re.MULTILINE))
EXTRAS = dict(re.findall(r'"([\w-]+)>=([\d.]+)"[,\]]', PROJECT))


def test_every_package_that_a_user_must_have_is_tried_at_its_bound():
    (needed,) = re.findall(r"^dependencies = \[\n(.*?)^\]", PROJECT, re.MULTILINE | re.DOTALL)
    names = re.findall(r'^ *"([\w-]+)>=', needed, re.MULTILINE)
    assert len(names) == needed.count(">=")
    assert set(names) <= set(PINS)


@pytest.mark.parametrize("name", PINS)
def test_a_pin_is_the_bound(name):
    bound = (BOUNDS | EXTRAS)[name]
    assert PINS[name] == bound + ".0" * (PINS[name].count(".") - bound.count("."))


def test_the_source_archive_has_the_pins_that_its_tests_read():
    (included,) = re.findall(r"targets\.sdist\]\ninclude = \[(.*?)\]", PROJECT)
    assert '"/tests"' in included
    assert '"/.github/oldest.txt"' in included
