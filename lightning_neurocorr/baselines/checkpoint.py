"""Build a model from a checkpoint file, without Lightning and without executing its content."""

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.isolation.randomness import preserved_randomness

_PRIVATE_HPARAMS = ("_instantiator", "_class_path")  # LightningCLI's notes to itself


def load_model(
    path: Path, model_class: type[nn.Module], hparams: Mapping[str, Any], *, strict: bool
) -> nn.Module:
    """A ``model_class`` with the weights of the file, on the CPU, in eval mode, without gradients.

    Args:
        path: A Lightning checkpoint or a file with a ``state_dict``.
        model_class: The class to build.
        hparams: Constructor arguments; they win over those in the file.
        strict: Whether the weights of file and model must be the same set.

    Raises:
        ValueError: If the file cannot be read with ``weights_only=True``, the model cannot be built
            or the weights do not fit.
    """
    checkpoint = _read(path)
    with torch.inference_mode(False), preserved_randomness():  # constructors draw random weights
        model = _build(path, model_class, checkpoint, hparams)
        _load_weights(path, model, checkpoint["state_dict"], strict=strict)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Any]:
    """The checkpoint, with a bare ``state_dict`` put in the place where Lightning has it."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        return content
    is_dict = isinstance(content, dict) and len(content) > 0
    if is_dict and all(isinstance(value, Tensor) for value in content.values()):
        return {"state_dict": content}
    found = _first(content) if is_dict else f"a {type(content).__name__}"
    raise ValueError(
        "Expected `path` to hold a Lightning checkpoint or a state_dict of tensors, but got "
        f"{str(path)!r} with {found}."
    )


def _unreadable(path: Path, error: Exception) -> str:
    """Why ``weights_only=True`` refused the file, and what to do."""
    try:
        refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - written by an old torch.save, or by something else
        refused = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if not refused:
        return (
            "Expected `path` to be a file that torch.load can read with weights_only=True, but "
            f"got {str(path)!r}: {type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]:.200}"
        )
    return (
        f"Expected `path` to hold nothing but tensors and plain values, but {str(path)!r} also "
        f"holds {_first(refused, 5)}, which is not read because reading it can run code. If you "
        "trust the file, save its weights alone: torch.save(torch.load(path, "
        "weights_only=False)['state_dict'], 'weights.pt'), and give the constructor's arguments "
        "with `hparams=`."
    )


def _build(
    path: Path,
    model_class: type[nn.Module],
    checkpoint: dict[str, Any],
    hparams: Mapping[str, Any],
) -> nn.Module:
    """An instance from the stored and the given constructor arguments."""
    parameters = list(inspect.signature(model_class).parameters.values())
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    unknown = [name for name in hparams if name not in named and not anything]
    if unknown:
        raise ValueError(
            f"Expected `hparams` to be arguments of {model_class.__name__}, but got "
            f"{_first(unknown)}; it takes {_first(named)}."
        )
    stored = _stored_hparams(checkpoint, named)
    arguments = {**{k: v for k, v in stored.items() if anything or k in named}, **hparams}
    missing = [n for n, p in named.items() if p.default is p.empty and n not in arguments]
    if missing:
        raise ValueError(
            f"Expected {str(path)!r} to hold all arguments that {model_class.__name__} needs, but "
            f"got no {_first(missing)}. Give them: hparams={{{missing[0]!r}: ...}} (or call "
            "save_hyperparameters() in the model)."
        )
    try:
        model = model_class(**arguments)
        _prepare(model, checkpoint)
    except Exception as error:
        raise ValueError(
            f"Expected {model_class.__name__} to be built from "
            f"{_first(arguments) if arguments else 'no arguments'}, but got "
            f"{type(error).__name__}: {error}. Give arguments that were not stored in full with "
            "`hparams=`."
        ) from error
    return model


def _stored_hparams(checkpoint: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters in a Lightning checkpoint."""
    found = checkpoint.get("hyper_parameters")
    stored = {str(k): v for k, v in found.items()} if isinstance(found, Mapping) else {}
    stored = {k: v for k, v in stored.items() if k not in _PRIVATE_HPARAMS}
    # save_hyperparameters(config) stores what is in one argument and that argument's name
    whole = checkpoint.get("hparams_name")
    return {str(whole): _Settings(stored)} if stored and whole in named else stored


def _prepare(model: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Do what Lightning does before it loads weights: late layers, changes to the checkpoint."""
    if callable(configure := getattr(model, "configure_model", None)):
        configure()
    hook = getattr(model, "on_load_checkpoint", None)
    if callable(hook) and "pytorch-lightning_version" in checkpoint:
        hook(checkpoint)


def _load_weights(
    path: Path, model: nn.Module, weights: Mapping[str, Any], *, strict: bool
) -> None:
    """Load, or say which weights do not fit."""
    strict = strict and bool(getattr(model, "strict_loading", True))  # a LightningModule may be lax
    try:
        result = model.load_state_dict(weights, strict=strict)
    except Exception as error:
        told = [_shortened(line) for line in str(error).splitlines()[1:4]] or [str(error)]
        raise ValueError(
            f"Expected {str(path)!r} to fit {type(model).__name__}, but got other weights: "
            f"{' '.join(told)} Check `model_class` and `hparams`; strict=False leaves weights out "
            "that only one has."
        ) from error
    if weights and set(weights) <= set(getattr(result, "unexpected_keys", ())):
        raise ValueError(
            f"Expected {str(path)!r} to hold weights of {type(model).__name__}, but got none: the "
            f"file has {_first(weights)}, the model {_first(model.state_dict())}."
        )


def _shortened(line: str) -> str:
    """A line of PyTorch's message with only the first few names."""
    names = line.split('", "')
    more = f'" and {len(names) - 3} more.' if len(names) > 3 else ""
    return ('", "'.join(names[:3]) + more).strip()


class _Settings(dict[str, Any]):
    """Stored settings, read as ``settings["a"]`` or ``settings.a``, as a model may expect."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _first(names: Iterable[Any], count: int = 3) -> str:
    """The first few names of many."""
    names = [repr(name) for name in names]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
