"""scikit-learn, where it is installed: clustering, partial least squares, logistic regression."""

from importlib import import_module
from typing import Any


def scikit(module: str) -> Any:
    """A module of scikit-learn, such as ``"cluster"``.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed; says how to install it.
    """
    try:
        return import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Groups and slices need scikit-learn: pip install "lightning_neurocorr[studies]"'
        ) from error
