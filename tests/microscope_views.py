"""The microscope's page in a browser, the same in TensorBoard and in a file."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
SECONDS = 60
SIZE = {"width": 1400, "height": 900}
_TALL = {"width": 2600, "height": 8000}  # all rows and columns are in view; slow to paint

# What has a link: every page, and every key that a link of it may have.
PAGES = (
    ("overview", {"filter": "r>0 layer:features*", "sort": "q_value", "columns": "r,q_value"}),
    ("neuron", {"neuron": "features.2:3"}),
    ("samples", {"cell": "only_model"}),
    ("samples", {"cell": "both", "from": "120"}),
    ("samples", {"cell": "neither", "truth": "5"}),
    ("sample", {"sample": "7"}),
    ("compare", {}),
    ("compare", {"other": "digits/version_1", "othername": "neurocorr", "by": "a"}),
    ("compare", {"other": "digits/version_0", "othername": "neurocorr", "otherstep": "19"}),
    ("study", {"study": "ablation"}),
    ("study", {"study": "squares", "by": "neuron/-squared"}),
)

_ALL_READY = "({...document.getElementById('app')?.dataset})"


@dataclass
class View:
    """One page that shows some runs.

    Attributes:
        page: Playwright's page.
        address: Of TensorBoard or of the file.
        inside: Whether it is TensorBoard.
        requests: Addresses that were asked for since the page was made.
        errors: What went wrong in the page.
    """

    page: Any
    address: str
    inside: bool
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog"), dialog.dismiss()))

    @property
    def frame(self) -> Any:
        """Where the microscope is: a frame of TensorBoard, or the page itself."""
        if not self.inside:
            return self.page.main_frame
        found = [one for one in self.page.frames if "plugin_entry" in one.url]
        return found[0] if found else self.page.main_frame

    def link(self, **state: str) -> str:
        """The address of a state."""
        if not self.inside:
            return f"{self.address}#{urlencode(state)}"
        return f"{self.address}#neurocorr&{urlencode({'p.neurocorr.v': urlencode(state)})}"

    def load(self, **state: str) -> View:
        """Open the link of a state in a fresh page."""
        self.page.goto("about:blank")
        self.page.goto(self.link(**state))
        return self.ready(state)

    def go(self, **state: str) -> View:
        """Go to a state; loads the page the first time only."""
        if "about:blank" in self.page.url:
            return self.load(**state)
        self.frame.evaluate("hash => { location.hash = hash }", urlencode(state))
        self.page.wait_for_timeout(20)
        return self.ready(state)

    def ready(self, state: dict[str, str] | None = None) -> View:
        """Wait until nothing is on its way."""
        deadline, seen = time.monotonic() + SECONDS, {}
        wanted = (state or {}).get("page", "overview") if state is not None else None
        while time.monotonic() < deadline:
            seen = self.frame.evaluate(_ALL_READY)
            if seen.get("state") == "ready" and wanted in (None, seen.get("page")):
                self.page.wait_for_timeout(20)
                if self.frame.evaluate(_ALL_READY).get("state") == "ready":
                    return self
            self.page.wait_for_timeout(20)
        raise AssertionError(f"{wanted} not ready after {SECONDS} s: {seen}, {self.errors}")

    def text(self, selector: str = "#app") -> str:
        """What is read there."""
        return self.frame.locator(selector).first.inner_text().replace("\n:", ":")

    def texts(self, selector: str) -> list[str]:
        """What is read in each of several places."""
        return self.frame.evaluate(
            """selector => [...document.querySelectorAll(selector)].map(
            one => one.innerText.replaceAll('\\n:', ':'))""",
            selector,
        )

    def rows(self) -> list[list[str]]:
        """The cells of all rows of the table, top to bottom, without the picture."""
        self.page.set_viewport_size(_TALL)
        try:
            self.frame.wait_for_function("""() => {
                const grid = document.querySelector('[role=grid]');
                return document.querySelectorAll('.grid-row:not([hidden])').length ===
                    Number(grid.getAttribute('aria-rowcount')) - 1 }""")
            self.ready()
            return self.frame.evaluate(_ROWS)
        finally:
            self.page.set_viewport_size(SIZE)


_ROWS = """() => [...document.querySelectorAll('.grid-row:not([hidden])')]
    .map(row => [Number(row.getAttribute('aria-rowindex')),
        [...row.children].filter(cell => !cell.querySelector('canvas')).map(
        cell => cell.textContent)])
    .sort((a, b) => a[0] - b[0]).map(([, cells]) => cells)"""


def number(text: str) -> float:
    """A number as the page writes it."""
    found = re.fullmatch(r"([+−]?)([\d,]*\.?\d+)(?:e(−?)(\d+))?(%?)", text.strip())
    assert found, f"no number: {text!r}"
    sign, digits, minus, power, percent = found.groups()
    value = float(digits.replace(",", "")) * 10.0 ** (int(power or 0) * (-1 if minus else 1))
    return (-value if sign == "−" else value) / (100 if percent else 1)


def says(text: str, value: float) -> bool:
    """Whether a shown number is the value, to all digits shown and the 12 bits that are kept."""
    if text.startswith("<"):
        return 0 <= value < number(text[1:])
    found = re.fullmatch(r"[+−]?([\d,]*)(?:\.(\d+))?(?:e(−?)(\d+))?(%?)", text.strip())
    assert found, f"no number: {text!r}"
    _, after, minus, power, percent = found.groups()
    digit = 10.0 ** (int(power or 0) * (-1 if minus else 1) - len(after or ""))
    digit /= 100 if percent else 1
    return abs(number(text) - value) <= 0.5001 * digit + 1.3e-4 * abs(value)
