"""What a study is: a question to one validation that costs more than a correlation.

A new study is one file: a frozen dataclass of settings that is a :class:`Study`, and a
:class:`Listener` where it listens. The way of a study:

1. ``check(options)`` when the callback is made: refuse what cannot work.
2. ``listen(start)`` in every process when a validation begins that may be studied, also in
   Lightning's sanity check: a new :class:`Listener`, or None.
3. ``listener.add(heard)`` for every batch. The first batch is the place to refuse the rest.
4. ``listener.merge(other)`` on the first process, for that of every other process.
5. ``find(look)`` on the first process, when the report is there: the :class:`Finding`.

Before the first whole validation has worked, an exception ends the run and says why. Afterwards
it is a warning, and the study's place in the report says what went wrong. Whatever a study does
to random states, modes, buffers and gradients of the model is undone.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import nn
from typing_extensions import Self

from lightning_neurocorr.report.finding import Finding
from lightning_neurocorr.studies.beside import Beside
from lightning_neurocorr.studies.heard import Heard, Start
from lightning_neurocorr.studies.look import Look
from lightning_neurocorr.validation.options import Options

Need = Literal["outcomes", "classes", "advantage", "positions"]


class Listener(ABC):
    """What one process hears of one validation; made anew for each.

    Keep sums, not batches: the memory of a listener must not grow with the data. Attributes that
    are data travel between processes: numbers, texts, tensors and arrays, lists, dicts and sets of
    these, and objects of your own that hold them. Tensors are on the CPU when :meth:`merge` and
    ``find`` see them (not those inside of your objects). A module, a :class:`Beside` or the study
    itself stays where it is: ``other`` lacks it.

    Attributes:
        also: Further modules by name, of the model or not: what each returned last is in
            ``heard.outputs``. Set it in ``__init__``.
        overhears: Networks of the baseline, as `Beside.baseline` gives them: they are heard while
            the baseline answers, and not run again. Set it in ``__init__`` too.
        stays: Names of further attributes that do not travel.
    """

    also: Mapping[str, nn.Module] = {}
    overhears: Sequence[Beside] = ()
    stays: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def add(self, heard: Heard) -> None:
        """Hear a batch. Do not wait for the device here: no ``.item()``, ``.cpu()``, ``if x > 0``.

        Args:
            heard: The batch.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what another process has heard, so that it is as if one process had heard all.

        A process may have heard nothing.
        """


class Study(ABC):
    """A question to one validation. Subclass it as a frozen dataclass, whose fields are settings.

    Attributes:
        name: The key in ``report.studies``; by default the class's name in small letters. Make it
            a field where somebody may ask two of a kind.
        title: What people call it; by default the name.
        about: What it asks and how, in one or two plain sentences.
        needs: What it cannot do without. ``"outcomes"``: something is right or wrong.
            ``"classes"``: each sample has one true class. ``"positions"``: samples can be fetched
            again. Where these are not there, it is refused early. ``"advantage"``: model and
            baseline differ on enough samples that the report has no ``message``; else the finding
            is refused with that message.
        stores: On so many samples it wants the activations of all watched neurons:
            ``look.stored()``.
        asks: Further baselines that it asks: they are moved to the device, shown the model at every
            validation, and kept in checkpoints, like the callback's own.
        every_n_validations: Also runs after validations n, 2n and so on of a fit; always at its end
            and on ``trainer.validate``.
        doing: What is attempted, for warnings: "could not <doing> and goes on without".
        time_budget_s: Seconds for all of its ``add`` and, apart from these, for ``find``; None is
            no limit. After them it has the state ``not_finished``.
    """

    name: str = ""
    title: ClassVar[str] = ""
    about: ClassVar[str] = ""
    doing: ClassVar[str] = ""
    needs: ClassVar[tuple[Need, ...]] = ()
    stores: int = 0
    asks: tuple[Any, ...] = ()
    every_n_validations: int | None = None
    time_budget_s: float | None = 300.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not vars(cls).get("name"):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        if not vars(cls).get("title"):
            cls.title = cls.name.replace("_", " ").capitalize()
        if not vars(cls).get("doing"):
            cls.doing = f"do the study {cls.name!r}"

    def _check_whole(self, **least: int) -> None:
        """Raise unless settings are whole numbers of at least so much, each by its name."""
        for name, lowest in least.items():
            if type(value := getattr(self, name)) is not int or value < lowest:
                raise ValueError(
                    f"Expected `{name}` of {type(self).__name__} to be a whole number of at least "
                    f"{lowest}, but got {value!r}."
                )

    def check(self, options: Options) -> None:  # noqa: B027 -- most can ask nothing here
        """Raise where what the user asked for can never work.

        Args:
            options: Everything that ``NeuronAdvantage`` or ``compare`` was asked for.

        Raises:
            TypeError: Saying which argument is wrong and what to do.
            ValueError: The same.
        """

    def listen(self, start: Start) -> Listener | None:  # noqa: ARG002
        """A new listener for a validation, or None where the study does not listen.

        Args:
            start: What is known before the first batch.
        """
        return None

    @abstractmethod
    def find(self, look: Look) -> Finding:
        """What the study found. Only the first process comes here.

        Args:
            look: The report, the samples, the model to run again, and what was heard.

        Raises:
            RefusedError: Where it cannot be measured; its text becomes the finding's ``why``.
        """


class EverywhereStudy(Study):
    """A study that every process works on after the validation, each on its part of the samples.

    Attributes:
        working: What :meth:`work` attempts, for warnings.
    """

    working: ClassVar[str] = "work on a study"

    @abstractmethod
    def work(self, look: Look) -> Any:
        """This process's part. It must not talk to other processes: one may have failed."""

    @abstractmethod
    def find(self, look: Look) -> Finding:
        """As in :class:`Study`, but every process comes here once all have worked.

        ``look.worked`` is what :meth:`work` returned. Processes may talk to each other; the finding
        of the first one counts.
        """
