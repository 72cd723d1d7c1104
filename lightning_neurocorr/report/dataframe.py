"""Columns as a DataFrame, where pandas is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dataframe(columns: Mapping[str, Any]) -> Any:
    """Columns of one length, by name, as a ``pandas.DataFrame``.

    Raises:
        ModuleNotFoundError: If pandas is not installed; says how to install it.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'to_dataframe needs pandas: pip install "lightning_neurocorr[pandas]"'
        ) from error
    return pd.DataFrame(dict(columns))
