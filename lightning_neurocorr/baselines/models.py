"""Networks as baselines: a module, a checkpoint file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr.baselines.batch import Field, check_field, read_field, read_inputs
from lightning_neurocorr.baselines.checkpoint import load_model
from lightning_neurocorr.baselines.prediction import as_tensor
from lightning_neurocorr.baselines.returned import follow, prediction_path
from lightning_neurocorr.isolation.evaluating import evaluating, module_device
from lightning_neurocorr.isolation.randomness import PrivateRandomness

_SAY_OUTPUT = (
    "Say with `output=` of the baseline which part is the answer: a key, an index or a function."
)


class ModuleBaseline:
    """Another network.

    It is not copied: whoever goes on training the module changes the baseline. It runs in eval
    mode, without gradients and in its own precision (mixed precision is switched off, inputs are
    cast to its parameters' type), so its answers do not depend on the trainer's settings; its
    training flags are as before after each call. It moves to where the batch is.

    Args:
        module: Returns ``(N,)`` class ids or ``(N, C)`` scores, bare or among other things.
        inputs: Where its input is in the batch: key, position, dotted attribute or a function of
            the batch. A tuple is given as positional arguments, a dict as keyword arguments.
            ``None`` reads the x of an ``(x, y)`` or dict batch.
        output: Where its answer is in what it returns: key, position, dotted attribute or a
            function of that. ``None`` takes what is called ``logits``, ``preds`` or the like, else
            the only tensor.
    """

    def __init__(
        self, module: nn.Module, *, inputs: Field | None = None, output: Field | None = None
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"Expected `module` to be a torch.nn.Module, but got {module!r:.80}. A function of "
                "the batch is a baseline as it is."
            )
        if inputs is not None:
            check_field(inputs, "inputs")
        if output is not None:
            check_field(output, "output")
        self.module = module
        self.inputs, self.output = inputs, output
        self._randomness = PrivateRandomness()

    def to(self, device: torch.device | str) -> Self:
        """Move the module."""
        with torch.inference_mode(False):  # else its parameters could never be trained again
            self.module.to(device)
        return self

    def __call__(self, batch: Any) -> Tensor:
        """What the module says about the batch."""
        inputs = read_inputs(batch, self.inputs)
        here, there = module_device(self.module), _device_of(inputs)
        if here is not None and there is not None and here != there:
            self.to(there)
        with evaluating(self.module, self._randomness, autocast=False):
            return run_network(self.module, inputs, self.module.__call__, self.output)

    def network(self) -> nn.Module:
        """The module."""
        return self.module

    def __repr__(self) -> str:
        return f"ModuleBaseline({type(self.module).__name__}{shown_fields(self)})"


class CheckpointBaseline:
    """A network from a file: a Lightning checkpoint or a saved ``state_dict``.

    The file is read with ``weights_only=True`` when it is first needed, so nothing in it is
    executed. The model is built from the stored hyper-parameters that its constructor takes and
    then runs like a `ModuleBaseline`.

    Args:
        path: A ``.ckpt`` of a LightningModule, or what ``torch.save(model.state_dict(), path)``
            wrote.
        model_class: The class to build, any ``torch.nn.Module`` whose state fits the file.
        hparams: Constructor arguments; they win over the stored ones.
        inputs: As in `ModuleBaseline`.
        output: As in `ModuleBaseline`.
        strict: Whether every weight must be in the file and the file hold nothing else.
    """

    def __init__(
        self,
        path: str | Path,
        model_class: type[nn.Module],
        *,
        hparams: dict[str, Any] | None = None,
        inputs: Field | None = None,
        output: Field | None = None,
        strict: bool = True,
    ) -> None:
        if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
            raise TypeError(
                "Expected `model_class` to be a class of torch.nn.Module, but got "
                f"{model_class!r:.80}. For a module that is already loaded there is ModuleBaseline."
            )
        if not Path(path).expanduser().is_file():
            raise FileNotFoundError(
                f"Expected `path` to be a checkpoint file, but got {str(path)!r}."
            )
        if inputs is not None:
            check_field(inputs, "inputs")
        if output is not None:
            check_field(output, "output")
        self.path = Path(path).expanduser()
        self.model_class = model_class
        self.hparams = dict(hparams or {})
        self.inputs, self.output = inputs, output
        self.strict = strict
        self._loaded: ModuleBaseline | None = None

    def check(self, num_samples: int | None = None) -> None:  # noqa: ARG002
        """Read the file now.

        Raises:
            ValueError: If it cannot be read safely, the model cannot be built or the weights do not
                fit.
        """
        self._load()

    def to(self, device: torch.device | str) -> Self:
        """Read the file and move the model."""
        self._load().to(device)
        return self

    def __call__(self, batch: Any) -> Tensor:
        """What the model of the checkpoint says about the batch."""
        return self._load()(batch)

    def network(self) -> nn.Module:
        """The model of the checkpoint."""
        return self._load().module

    def _load(self) -> ModuleBaseline:
        if self._loaded is None:
            model = load_model(self.path, self.model_class, self.hparams, strict=self.strict)
            self._loaded = ModuleBaseline(model, inputs=self.inputs, output=self.output)
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}  # read again from the file

    def __repr__(self) -> str:
        shown = f"{str(self.path)!r}, {self.model_class.__name__}{shown_fields(self)}"
        return f"CheckpointBaseline({shown})"


def run_network(
    module: nn.Module, inputs: Any, call: Callable[..., Any], field: Field | None
) -> Tensor:
    """The prediction that ``call``, which runs ``module``, makes of ``inputs``."""
    inputs = _cast(inputs, [p.dtype for p in module.parameters() if p.is_floating_point()])
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})
    if isinstance(inputs, Mapping):
        args, kwargs = (), {str(name): value for name, value in inputs.items()}
    output = call(*args, **kwargs)
    if field is not None:
        return as_tensor(read_field(output, field, "output"), f"`output` ({field!r})")
    name = type(module).__name__
    return follow(output, prediction_path(output, what=name, instead=_SAY_OUTPUT))


def _cast(inputs: Any, dtypes: list[torch.dtype]) -> Any:
    """Floating tensors in ``inputs`` as one of the module's types."""
    if isinstance(inputs, Tensor):
        foreign = inputs.is_floating_point() and dtypes and inputs.dtype not in dtypes
        return inputs.to(dtypes[0]) if foreign else inputs
    if isinstance(inputs, Mapping):
        return {name: _cast(value, dtypes) for name, value in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)([_cast(value, dtypes) for value in inputs])
    return inputs


def _device_of(inputs: Any) -> torch.device | None:
    """Where the first tensor in ``inputs`` is."""
    if isinstance(inputs, Tensor):
        return inputs.device
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs
    for part in parts if isinstance(inputs, (Mapping, tuple, list)) else ():
        if (device := _device_of(part)) is not None:
            return device
    return None


def shown_fields(baseline: Any) -> str:
    """Where its input and its answer are, where that was said; for a ``repr``."""
    fields = {name: getattr(baseline, name) for name in ("inputs", "output")}
    return "".join(f", {name}={field!r}" for name, field in fields.items() if field is not None)
