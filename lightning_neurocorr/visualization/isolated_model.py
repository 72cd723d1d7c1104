"""Run a user's model for pictures and leave no trace on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Place, carrier, listen
from lightning_neurocorr.isolation import without_checkpointing
from lightning_neurocorr.isolation.compilation import eager
from lightning_neurocorr.isolation.randomness import preserved_randomness
from lightning_neurocorr.isolation.replacing import replaced_modules
from lightning_neurocorr.isolation.swapping import call_with, evaluation_mode, own_tensors
from lightning_neurocorr.visualization.stand_ins import stand_ins

Read = Callable[[Any, Place], Tensor]


class _Reached(BaseException):
    """Ends a forward once its layers have answered; no ``except Exception`` swallows it."""


class _Shell(nn.Module):
    """Gives a callable the shape that ``functional_call`` wants."""

    def __init__(self, root: nn.Module, forward: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.root = root
        self._calls = (forward,)  # in a tuple, or a module would be a second submodule

    def forward(self, images: Tensor) -> Any:
        return self._calls[0](images)


class IsolatedModel:
    """A model in evaluation mode, on private buffers, with hooks only while it runs.

    Half-precision weights are read as float32, weights carry no gradient, and all is undone.

    Args:
        forward: A module, a method of one, or any callable from images to anything. For a callable
            that is no method, only the modules in ``layers`` are known: put the others in
            evaluation mode yourself.
        layers: The layers to read, by name.

    Attributes:
        device: Where the images go.
        dtype: float32, or float64 if the model has float64 weights.
        memory_format: ``channels_last`` until :meth:`prefer_contiguous` is called.

    Raises:
        ValueError: If the weights are in half precision and ``forward`` is no module or method of
            one.
    """

    def __init__(
        self, forward: nn.Module | Callable[[Tensor], Any], layers: Mapping[str, Place]
    ) -> None:
        owner = forward if isinstance(forward, nn.Module) else getattr(forward, "__self__", None)
        self._forward = forward
        self._layers = layers
        self._root = owner if isinstance(owner, nn.Module) else None
        carriers = nn.ModuleList(map(carrier, layers.values()))
        self._known = carriers if self._root is None else self._root
        self._shell = None if self._root is None else _Shell(self._root, forward)
        self._state: dict[str, Tensor] = {}
        self._stand_ins: dict[nn.Module, nn.Module] = {}
        tensors = [*self._known.parameters(), *self._known.buffers()]
        floating = [t for t in tensors if t.is_floating_point()]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.dtype = (
            torch.float64 if any(t.dtype == torch.float64 for t in floating) else torch.float32
        )
        self.memory_format = torch.channels_last
        if self._root is None and any(t.dtype in (torch.float16, torch.bfloat16) for t in floating):
            raise ValueError(
                "Expected `forward` to be a module or a method of one where weights are in half "
                "precision, because pictures are made on float32 copies of them, but got "
                f"{type(forward).__name__}."
            )

    @contextmanager
    def opened(self, seed: int) -> Iterator[None]:
        """What runs inside leaves modules, random states and global switches as they were."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        with (
            preserved_randomness(self.device, seed),
            torch.inference_mode(False),
            torch.enable_grad(),
            evaluation_mode(self._known),
            without_checkpointing(),
        ):
            try:
                # some gradients (grid_sample on CUDA) have no deterministic version and would raise
                torch.use_deterministic_algorithms(False)
                self._state = {} if self._shell is None else _private_state(self._shell)
                with eager(self._known), torch.autocast(self.device.type, enabled=False):
                    yield
            finally:
                self._state, self._stand_ins = {}, {}
                torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)

    def __call__(self, images: Tensor) -> Any:
        """The model's output."""
        if self._shell is None:
            return self._forward(images)
        return call_with(self._shell, self._state, (images,))

    def prepare(self, images: Tensor) -> Tensor:
        """``images`` on the model's device, in its floating type and memory format."""
        return images.to(self.device, self.dtype).contiguous(memory_format=self.memory_format)

    def prefer_contiguous(self) -> None:
        """Give up ``channels_last``: the model reshapes with ``view``."""
        self.memory_format = torch.contiguous_format

    def shorten(
        self, images: Tensor, readers: Mapping[str, Read], calls: Mapping[str, int]
    ) -> None:
        """Let further reads with ``short`` use stand-ins, if these read the same on ``images``."""
        if self._shell is None:
            return
        self._stand_ins = stand_ins(
            self._shell,
            self._state,
            lambda: self.read(images, readers, calls),
            {carrier(self._layers[name]) for name in readers},
        )
        if not self._stand_ins:
            return
        plain = self.read(images, readers, calls)
        try:
            short = self.read(images, readers, calls, short=True)
        except Exception:  # noqa: BLE001 -- any: a forward may look into what is replaced
            short = {}
        if not all(alike(values, short.get(name, [])) for name, values in plain.items()):
            self.go_the_plain_way()

    def _in_bfloat16(self) -> torch.autocast:
        # a cache would hold what a recording made, and weights without gradient are in none
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    @property
    def is_short(self) -> bool:
        """Whether reads with ``short`` differ from others."""
        return bool(self._stand_ins)

    def go_the_plain_way(self) -> None:
        """Give up the stand-ins."""
        self._stand_ins = {}

    def read(
        self,
        images: Tensor,
        readers: Mapping[str, Read],
        calls: Mapping[str, int] | None = None,
        *,
        short: bool = False,
        half: bool = False,
    ) -> dict[str, list[Tensor]]:
        """Run the model and read layers on the way.

        Args:
            images: What the model gets.
            readers: ``(output, place) -> tensor`` by layer name; applied at once, before later
                layers can write into the output.
            calls: How often each layer is called in one forward; with it, the forward stops after
                the last call.
            short: Use the stand-ins that :meth:`shorten` found.
            half: Run in bfloat16 what autocast runs in it.

        Returns:
            What the readers gave, call by call, by layer name.
        """
        if short and self._shell is not None:
            with replaced_modules(self._shell, self._stand_ins):
                return self.read(images, readers, calls, half=half)
        seen: dict[str, list[Tensor]] = {name: [] for name in readers}

        def hook(name: str) -> Callable[[Place, Any], None]:
            def keep(place: Place, output: Any) -> None:
                seen[name].append(readers[name](output, place))
                if calls is not None and all(len(seen[n]) >= calls[n] for n in readers):
                    raise _Reached

            return keep

        handles = []
        try:
            for name in readers:
                handle = listen(self._layers[name], hook(name))
                handles.append(handle)
            with self._in_bfloat16() if half else nullcontext():
                self(images)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return seen


def alike(values: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether readings are the same but for rounding."""
    if len(values) != len(others):
        return False
    return all(
        torch.allclose(value, other, rtol=1e-3, atol=1e-3 * float(value.detach().abs().max()))
        for value, other in zip(values, others, strict=True)
    )


def _private_state(shell: nn.Module) -> dict[str, Tensor]:
    """Weights without gradients, half precision as float32, and copies of the buffers."""
    private: dict[int, Tensor] = {}  # what is tied stays tied
    return {
        name: private.setdefault(id(tensor), _private(tensor))
        for name, tensor in own_tensors(shell)
    }


def _private(tensor: Tensor) -> Tensor:
    found = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return found.float()
    if not isinstance(tensor, nn.Parameter) or tensor.is_inference():
        return found.clone()
    return found
