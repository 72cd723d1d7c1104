"""Networks as baselines: a module, a checkpoint file, the model itself at an earlier epoch."""

import warnings
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
from lightning_neurocorr.isolation.swapping import call_with

_SAY_OUTPUT = (
    "Say with `output=` of the baseline which part is the answer: a key, an index or a function."
)
_SHARDED = ("full_tensor", "_fsdp_flattened", "ds_tensor")  # marks of FSDP 2, FSDP 1, DeepSpeed


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
            return _run(self.module, inputs, self.module.__call__, self.output)

    def network(self) -> nn.Module:
        """The module."""
        return self.module

    def __repr__(self) -> str:
        return f"ModuleBaseline({type(self.module).__name__}{_shown(self)})"


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
        shown = f"{str(self.path)!r}, {self.model_class.__name__}{_shown(self)}"
        return f"CheckpointBaseline({shown})"


class SnapshotBaseline:
    """The model itself, frozen as it is first validated at or after an epoch.

    The weights and buffers are kept beside the model (as much memory again) and travel in the
    checkpoint, so a resumed run compares with the same snapshot. The live model is run with them
    swapped in and is not changed; mixed precision stays as it is outside, so that the same weights
    give the same answers.

    Args:
        epoch: 0 freezes the model at the first validation, after the first epoch of training.
        inputs: As in `ModuleBaseline`.
        output: As in `ModuleBaseline`.
    """

    def __init__(
        self, epoch: int = 0, *, inputs: Field | None = None, output: Field | None = None
    ) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"Expected `epoch` to be an integer of at least 0, but got {epoch!r}.")
        if inputs is not None:
            check_field(inputs, "inputs")
        if output is not None:
            check_field(output, "output")
        self.epoch = epoch
        self.inputs, self.output = inputs, output
        self.taken_at: int | None = None
        self._parameters: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._module: nn.Module | None = None
        self._randomness = PrivateRandomness()

    @property
    def ready(self) -> bool:
        """Whether the snapshot is taken and the model to run it with has been seen."""
        return self.taken_at is not None and self._module is not None

    def observe(self, module: nn.Module, epoch: int) -> None:
        """Take the snapshot if it is time; remember ``module`` to run it with.

        Raises:
            ValueError: If the module is sharded, or its parameters are not those of the snapshot.
        """
        parameters = dict(module.named_parameters())
        buffers = dict(module.named_buffers())
        if any(hasattr(p, mark) for p in parameters.values() for mark in _SHARDED):
            raise ValueError(
                "Expected a model whose parameters are whole on every process, but got sharded "
                "ones, which cannot be swapped. Save a checkpoint and use CheckpointBaseline."
            )
        with torch.inference_mode(False), torch.no_grad():
            if self.taken_at is None and epoch >= self.epoch:
                self._parameters, self._buffers = _cloned(parameters), _cloned(buffers)
                self.taken_at = epoch
            elif self.taken_at is not None:
                _check_same(self._parameters, parameters)
                self._parameters = {k: v.to(parameters[k]) for k, v in self._parameters.items()}
                self._buffers = {
                    k: v.to(buffers[k]) for k, v in self._buffers.items() if k in buffers
                }
        self._module = module

    def network(self) -> nn.Module:
        """The live model: while the snapshot is asked, it runs with the snapshot's weights.

        Raises:
            RuntimeError: If no snapshot has been taken.
        """
        if self._module is None:
            raise RuntimeError(f"Expected a snapshot to have been taken, but {self!r} has none.")
        return self._module

    def renew(self) -> None:
        """Drop the snapshot of an earlier run."""
        self.taken_at, self._module = None, None
        self._parameters, self._buffers = {}, {}

    def __call__(self, batch: Any) -> Tensor:
        """What the frozen model says about the batch."""
        module = self._module
        if self.taken_at is None or module is None:
            raise RuntimeError(
                f"Expected a snapshot to have been taken, but {self!r} has none yet: it is taken "
                "at the first validation at or after its epoch; in a notebook call "
                "`observe(module, epoch)`."
            )
        # buffers are copied, so that a model that writes to them does not change the snapshot
        state = {**self._parameters, **_cloned(self._buffers)}

        def call(*args: Any, **kwargs: Any) -> Any:
            return call_with(module, state, args, kwargs)

        inputs = read_inputs(batch, self.inputs)
        with evaluating(module, self._randomness, autocast=True):
            return _run(module, inputs, call, self.output)

    def state_dict(self) -> dict[str, Any]:
        """The snapshot."""
        if self.taken_at is None:
            return {"epoch": self.epoch}
        return {
            "epoch": self.epoch,
            "taken_at": self.taken_at,
            "parameters": self._parameters,
            "buffers": self._buffers,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a snapshot back, unless it was asked for at another epoch."""
        if state_dict.get("taken_at") is None:
            return
        if state_dict["epoch"] != self.epoch:
            warnings.warn(
                f"The checkpoint's snapshot was asked for at epoch {state_dict['epoch']} and this "
                f"run asks for epoch={self.epoch}: a new one is taken.",
                stacklevel=2,
            )
            return
        self.taken_at = state_dict["taken_at"]
        self._parameters = dict(state_dict["parameters"])
        self._buffers = dict(state_dict["buffers"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_module": None}  # the live model does not belong to the baseline

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epoch={self.epoch}{_shown(self)})"


def _run(module: nn.Module, inputs: Any, call: Callable[..., Any], field: Field | None) -> Tensor:
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


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _check_same(snapshot: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Raise unless both have the same names and shapes."""
    for name in [*live, *snapshot]:
        before, now = snapshot.get(name), live.get(name)
        if before is None or now is None or before.shape != now.shape:
            shapes = [("no such parameter" if t is None else tuple(t.shape)) for t in (before, now)]
            raise ValueError(
                f"Expected the model to have the snapshot's parameters, but got {name!r}: "
                f"{shapes[0]} in the snapshot, {shapes[1]} in the model."
            )


def _shown(baseline: Any) -> str:
    fields = {name: getattr(baseline, name) for name in ("inputs", "output")}
    return "".join(f", {name}={field!r}" for name, field in fields.items() if field is not None)
