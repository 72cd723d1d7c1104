"""The model itself, at an earlier epoch, as a baseline."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.baselines.batch import Field, check_field, read_inputs
from lightning_neurocorr.baselines.models import run_network, shown_fields
from lightning_neurocorr.isolation.attributes import (
    Attributes,
    OtherAttributes,
    plain_attributes,
)
from lightning_neurocorr.isolation.evaluating import evaluating
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.isolation.swapping import call_with

_SHARDED = ("full_tensor", "_fsdp_flattened", "ds_tensor")  # marks of FSDP 2, FSDP 1, DeepSpeed


class SnapshotBaseline:
    """The model itself, frozen as it is first validated at or after an epoch.

    The weights and buffers are kept beside the model (as much memory again), with what modules have
    in plain attributes (a temperature, prototypes, switches). They travel in the checkpoint, so a
    resumed run compares with the same snapshot. The live model is run with them swapped in and is
    not changed; mixed precision stays as it is outside, so that the same weights give the same
    answers.

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
        self.just_taken = False  # at the validation that goes on
        self._parameters: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._attributes: Attributes = {}
        self._others: OtherAttributes | None = None
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
            self.just_taken = self.taken_at is None and epoch >= self.epoch
            if self.just_taken:
                self._parameters, self._buffers = _cloned(parameters), _cloned(buffers)
                self._attributes = plain_attributes(module)
                self.taken_at = epoch
            elif self.taken_at is not None:
                _check_same(self._parameters, parameters)
                self._parameters = {k: v.to(parameters[k]) for k, v in self._parameters.items()}
                self._buffers = {
                    k: v.to(buffers[k]) for k, v in self._buffers.items() if k in buffers
                }
            self._others = OtherAttributes(module, self._attributes)
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
        self.taken_at, self._module, self.just_taken = None, None, False
        self._parameters, self._buffers, self._attributes = {}, {}, {}
        self._others = None

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
            with nullcontext() if self._others is None else self._others.in_place():
                return call_with(module, state, args, kwargs)

        inputs = read_inputs(batch, self.inputs)
        with evaluating(module, self._randomness, autocast=True):
            return run_network(module, inputs, call, self.output)

    def state_dict(self) -> dict[str, Any]:
        """The snapshot."""
        if self.taken_at is None:
            return {"epoch": self.epoch}
        return {
            "epoch": self.epoch,
            "taken_at": self.taken_at,
            "parameters": self._parameters,
            "buffers": self._buffers,
            "attributes": self._attributes,
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
        self._attributes = dict(state_dict.get("attributes", {}))

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_module": None,
            "_others": None,
        }  # the live model does not belong to the baseline

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epoch={self.epoch}{shown_fields(self)})"


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
