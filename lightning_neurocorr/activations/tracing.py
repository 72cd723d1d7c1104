"""Watch one forward: where what a layer says goes, and which axes are its units.

Nothing is kept but small notes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_neurocorr.activations import layouts as L
from lightning_neurocorr.activations import operations as O
from lightning_neurocorr.activations.followed import Followed
from lightning_neurocorr.activations.onward import Onward
from lightning_neurocorr.activations.pooling import first_tensor, packed_in
from lightning_neurocorr.activations.row_order import Order, leaves_rows, order_after
from lightning_neurocorr.activations.sequences import is_sequence_first
from lightning_neurocorr.activations.spoken import Passage, Speaker, Spoken, Traced
from lightning_neurocorr.isolation import torch_private
from lightning_neurocorr.isolation.asides import depth, is_noting, noting
from lightning_neurocorr.isolation.torch_private import TorchDispatchMode, pytree

# With constants they move and stretch a neuron's values, no more.
_AFFINE = {"add", "sub", "rsub", "mul", "div", "neg"}
# They compute by operations that are not followed, and say themselves what their axes are.
_SEQUENCES = (nn.RNNBase, nn.MultiheadAttention)

Rooted = Callable[[str, nn.Module, Tensor, "L.Layout | None"], "L.Layout | None"]
Hearing = Callable[[Speaker, Passage, Any], None]


class _Mode(TorchDispatchMode):
    """Sees every operation inside a ``with``."""

    def __init__(self, dispatch: Callable[..., Any]) -> None:
        super().__init__()
        self._dispatch = dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchDispatchMode``."""
        return self._dispatch(func, args, kwargs or {})


class Trace:
    """Follows tensors through the forwards between :meth:`open` and :meth:`close`.

    Args:
        modules: All modules of the model by name; others are not looked at.
        layers: The watched ones.
        rooted: ``(name, layer, tensor, layout) -> layout`` of what a watched layer returned.
        hear: Called with every tensor at the door of a module that is a watched layer's own.

    Attributes:
        families: What each call of a layer led to, in order.
        calls: How often modules were called, by id.
        weights: Ids of the parameters that went into operations of a module.
        fault: The first error of our own; the forward goes on.
        reordered: Layers whose rows are samples in another order than that of the batch.
        left_in_order: Whether an order that rows were put in happened to be that of the batch.
        onward: What becomes of the prediction, where its module is known.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        layers: Mapping[str, nn.Module],
        rooted: Rooted,
        hear: Hearing,
    ) -> None:
        self._modules = list(dict.fromkeys(modules.values()))
        self._names = {id(module): name for name, module in layers.items()}
        self._rooted, self._hear = rooted, hear
        self._handles: list[RemovableHandle] = []
        self._aside = 0
        self.onward = Onward(None)
        self._mode = _Mode(self._dispatch)
        self._open = False
        self.restart()

    def restart(self, batch: Any = None) -> None:
        """Forget what was seen; ``batch`` is about to come, samples first."""
        self.weights: set[int] = set()
        self._followed = Followed()
        self._stack: list[tuple[nn.Module, int]] = []
        self._index = 0
        self.families: dict[Speaker, list[Spoken]] = {}
        self.calls: dict[int, int] = {}
        self.reordered: set[str] = set()
        self.left_in_order = False
        self.fault: Exception | None = None
        self._followed.begin_with(batch)
        self.onward.restart()

    def open(self) -> None:
        """Start watching; opening twice is harmless."""
        if self._open:
            return
        self._aside = depth()
        for module in self._hookable():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after, always_call=True))
        self._mode.__enter__()
        self._open = True

    def _hookable(self) -> list[nn.Module]:
        """All modules, but not those that PyTorch would run another way because of a hook."""
        fused: set[nn.Module] = set()
        for module in self._modules:
            inside = set(module.modules()) if isinstance(module, nn.TransformerEncoderLayer) else ()
            if not any(id(part) in self._names for part in inside):
                fused.update(inside)
        scripts = torch.jit.ScriptModule
        return [m for m in self._modules if m not in fused and not isinstance(m, scripts)]

    def close(self) -> None:
        """Stop watching; closing twice is harmless."""
        while self._handles:
            self._handles.pop().remove()
        if self._open:
            self._open = False
            self._mode.__exit__(None, None, None)

    # --- operations -------------------------------------------------------------------------------

    def _dispatch(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Composite operations are seen by their parts."""
        if is_noting() or self.fault is not None or depth() != self._aside:
            return func(*args, **kwargs)
        given = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if self._stack:
            self.weights.update(id(x) for x in given if isinstance(x, nn.Parameter))
        blank = O.is_blank(torch_private.operation_name(func))
        known = [x for x in given if self._followed.knows(x)]
        if blank or not known:
            return func(*args, **kwargs)
        kernel = torch_private.composite_kernel(func)
        if kernel is not None:
            with self._mode:  # the very kernel that would have run
                return kernel(*args, **kwargs)
        result = func(*args, **kwargs)
        self._noting(self._operation, func, args, given, result)
        return result

    def _noting(self, note: Callable[..., None], *args: Any) -> None:
        """Our notes never end the user's forward."""
        try:
            with noting():
                note(*args)
        except Exception as error:  # noqa: BLE001 -- any model may surprise us
            self.fault = self.fault or error

    def _operation(self, func: Any, args: Sequence[Any], given: list[Tensor], result: Any) -> None:
        name = torch_private.operation_name(func).removeprefix("aten::")
        name = name[:-1] if name.endswith("_") else name
        pointwise = torch.Tag.pointwise in func.tags or name in O.FUNCTIONS
        self._index += 1
        pairs = ((x, self._followed.get(x)) for x in given)
        known = {id(x): traced for x, traced in pairs if traced is not None}
        if name == "detach":  # autograd does it too, to what it saves: that is no use of it
            self._followed[result] = next(iter(known.values()))
            return

        def layout_of(x: Any) -> L.Layout | None:
            found = known.get(id(x))
            if found is None:
                return None
            return L.axes_of(x.shape, L.UNKNOWN) if found.layout is None else found.layout

        def order_of(x: Any) -> Order | None:
            return known[id(x)].order if id(x) in known else None

        order = order_after(name, args, order_of, layout_of)
        self.left_in_order |= leaves_rows(name, args, order_of, layout_of)
        outs = pytree.tree_leaves(result)
        inside = self._stack[-1][0] if self._stack else None
        self.onward.operation(name, args, pointwise, outs, inside)
        if name in (*O.NORMS, *O.FUNCTIONS, "max", "min") or O.is_pooling(name):
            outs, rest = outs[:1], outs[1:]  # then come statistics, indices, buffers
            for other in rest:
                if isinstance(other, Tensor):
                    self._followed[other] = Traced(None)
        for out in outs:
            if not isinstance(out, Tensor) or out.is_nested:
                continue
            layout = O.follow(name, args, layout_of, out, pointwise)
            made = Traced(layout, order=order if L.may_hold_samples(layout) else None)
            written = torch_private.is_mutable(func) and any(out is x for x in given)
            shared = written and self._followed.overwritten(out, layout, self._index)
            for speaker in {s for traced in known.values() for s in traced.own}:
                self._go_on(speaker, name, pointwise, list(known.values()), made, out.ndim, shared)
            self._followed[out] = made

    def _go_on(
        self,
        speaker: Speaker,
        name: str,
        pointwise: bool,
        known: list[Traced],
        made: Traced,
        ndim: int,
        shared: bool,
    ) -> None:
        """Note what became of one layer's own tensors in an operation; nothing, if ``shared``."""
        parents = [traced.own[speaker] for traced in known if speaker in traced.own]
        spoken = None
        if len(parents) == len(known) and not shared:
            kind = self._kind(name, pointwise, parents, made.layout, speaker)
            if kind:
                spoken = Spoken(self._index, kind, made.layout, ndim, parents)
                self.families[speaker].append(spoken)
                made.own[speaker] = spoken
        for parent in parents:
            parent.uses.append((self._index, spoken, tuple(call for _, call in self._stack)))

    def _kind(
        self,
        name: str,
        pointwise: bool,
        parents: list[Spoken],
        layout: L.Layout | None,
        speaker: Speaker,
    ) -> str:
        """What an operation on nothing but a layer's own does to it; empty where it mixes."""
        root = self.families[speaker][0].layout
        width = L.size_of(root, L.UNITS) if root is not None else -1
        apart = layout is not None and L.find(layout, L.UNITS) is not None
        apart = apart and L.size_of(layout or (), L.UNITS) == width
        if all(parent.kind == "statistic" for parent in parents):
            return "statistic" if pointwise or name in (*O.RESHAPES, *O.REDUCTIONS) else ""
        if name in O.REDUCTIONS:
            return O.POOLING.get(name, "statistic") if apart else "statistic"
        if not apart:
            return ""
        if name in O.RESHAPES:
            return "pool" if name == "slice" else "same"
        if name in O.NORMS:
            return "change"
        if O.is_pooling(name):
            return "average" if "avg" in name else "pool"
        if not pointwise:
            return ""
        affine = name in _AFFINE and len(parents) == 1 and not self._in_norm()
        return "affine" if affine else "change"

    def _in_norm(self) -> bool:
        """Whether a norm without statistics of its own is called, such as a frozen batch norm."""
        return bool(self._stack) and "norm" in type(self._stack[-1][0]).__name__.lower()

    # --- modules ----------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if depth() == self._aside:
            self.calls[id(module)] = self.calls.get(id(module), 0) + 1
            if self.fault is None:
                self._noting(self._enter, module, args, kwargs)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._index += 1
        self._stack.append((module, self._index))
        self.onward.enter(module)
        if len(self._stack) == 1:  # what a forward begins with, if it was not in the batch
            self._followed.begin_with((args, kwargs))
        for argument, value in (*enumerate(args), *kwargs.items()):
            traced = self._followed.get(value) if isinstance(value, Tensor) else None
            for speaker, spoken in traced.own.items() if traced is not None else ():
                heard = Passage(spoken, module, argument, self._index, self._index)
                self._hear(speaker, heard, value)

    def _after(self, module: nn.Module, _: Any, output: Any) -> None:
        if depth() == self._aside:
            if self.fault is None:
                self._noting(self._leave, module, output)
            elif id(module) in self._names:
                self._noting(self._hear_raw, module, output)

    def _hear_raw(self, module: nn.Module, output: Any) -> None:
        """After a fault of ours layers are heard as they are."""
        speaker = self._names[id(module)], self.calls[id(module)] - 1
        raw = Spoken(self._index, "raw", None, first_tensor(output).ndim)
        self._hear(speaker, Passage(raw, module, None, self._index, self._index), output)

    def _leave(self, module: nn.Module, output: Any) -> None:
        call = self._index
        while self._stack:  # a forward that raised has not come to its end
            other, call = self._stack.pop()
            if other is module:
                break
        self._index += 1
        self.onward.leave(module, output)
        try:
            value = first_tensor(output)
        except TypeError:
            value = torch.empty(0, device="cpu")
        if id(module) in self._names:
            self._speak(self._names[id(module)], module, value, packed_in(output))
        traced = self._followed.get(value)
        if traced is None:
            return
        if isinstance(module, _SEQUENCES) and not value.is_nested and value.ndim == 3:
            layout = L.with_axis(L.axes_of(value.shape), 2, L.UNITS, value.shape[2])
            rows = int(is_sequence_first(module))
            traced.layout = L.with_axis(layout, rows, L.SAMPLES, value.shape[rows])
        for speaker, spoken in traced.own.items():
            self._hear(speaker, Passage(spoken, module, None, self._index, call), output)

    def _speak(
        self, name: str, module: nn.Module, value: Tensor, packed: PackedSequence | None
    ) -> None:
        """A watched layer has returned: follow its output, if it is not packed."""
        traced = self._followed.get(value)
        layout, ndim = None, 1
        order = None if traced is None else traced.order
        if order is not None and (packed is None or packed.sorted_indices is None):
            self.reordered.add(name)  # a packed sequence may say how it is sorted
        if packed is None:
            layout = self._rooted(name, module, value, None if traced is None else traced.layout)
            ndim = value.ndim
        own = {} if traced is None else dict(traced.own)
        speaker = name, self.calls[id(module)] - 1
        own[speaker] = Spoken(self._index, "raw", layout, ndim)
        self.families[speaker] = [own[speaker]]
        self._followed[value] = Traced(layout, own, order)
