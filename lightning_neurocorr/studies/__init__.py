"""What costs more than a correlation: questions that are asked of one validation.

A study listens to the validation, runs samples again, or only reads the report; what it found is
in ``report.studies``. A new one is one file: see :class:`Study`.
"""

from lightning_neurocorr.report.declared import Column
from lightning_neurocorr.report.finding import Figure, Finding
from lightning_neurocorr.report.finding_table import Table
from lightning_neurocorr.studies.beside import Beside
from lightning_neurocorr.studies.groups import Groups
from lightning_neurocorr.studies.heard import Heard, Start
from lightning_neurocorr.studies.look import Look, Stored
from lightning_neurocorr.studies.matches import Matches, Snapshot
from lightning_neurocorr.studies.protocol import EverywhereStudy, Listener, Study
from lightning_neurocorr.studies.readout import Readout
from lightning_neurocorr.studies.refused import OutOfTimeError, RefusedError
from lightning_neurocorr.studies.slices import Slices
from lightning_neurocorr.studies.words import Words

__all__ = [
    "Beside",
    "Column",
    "EverywhereStudy",
    "Figure",
    "Finding",
    "Groups",
    "Heard",
    "Listener",
    "Look",
    "Matches",
    "OutOfTimeError",
    "Readout",
    "RefusedError",
    "Slices",
    "Snapshot",
    "Start",
    "Stored",
    "Study",
    "Table",
    "Words",
]
