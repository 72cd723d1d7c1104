"""What a model computes in front of a layer, kept from one forward and said again in others.

Calls that have ended before a layer speaks cannot depend on what it says: whatever is silenced
there, they return the same again. This holds for any model, a chain or not. Of what they returned,
only what is read outside of such calls has to be kept: of a chain, the last one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_neurocorr.activations import Place, carrier, listen
from lightning_neurocorr.activations.sharing import storage_of
from lightning_neurocorr.isolation.torch_private import TorchDispatchMode, pytree, version_of


@dataclass
class _Call:
    """A call of a module, from its first moment to its last."""

    module: nn.Module
    number: int  # among all calls of the module in this forward
    began: int
    ended: int = 0
    output: Any = None
    versions: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Kept:
    """A call that is answered from memory.

    Attributes:
        module: The module.
        number: Which of its calls.
        needed: Which leaves of what it returns are read by others; the rest has a shape only.
        changed: Which of them are written into later, so that every forward gets its own copy.
    """

    module: nn.Module
    number: int
    needed: tuple[bool, ...]
    changed: tuple[bool, ...]


class Prelude:
    """The calls in front of a layer, learnt from a forward of a few samples.

    Attributes:
        calls: Those that are answered from memory, in order.
        kept_bytes: What is kept of these samples.
        operation_bytes: The most bytes that an operation reads and writes.

    Args:
        model: The module whose calls are answered from memory; None answers none.
        place: Where the layer is read.
        run: Runs the model on a few samples.
    """

    def __init__(self, model: nn.Module | None, place: Place, run: Callable[[], Any]) -> None:
        watch = _Watch()
        with ExitStack() as stack:
            for module in () if model is None else model.modules():
                if not isinstance(module, torch.jit.ScriptModule):
                    before = module.register_forward_pre_hook(watch.before)
                    after = module.register_forward_hook(watch.after, prepend=True)
                    stack.callback(before.remove)
                    stack.callback(after.remove)
            stack.callback(listen(place, watch.reach).remove)
            with watch:
                run()
        self.operation_bytes = watch.operation_bytes
        self.calls = watch.kept(carrier(place)) if watch.reached else []
        self.kept_bytes = watch.kept_bytes

    def capture(self, run: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """Run the model and keep what these calls return: what it says, and the way to replay."""
        wanted = {(call.module, call.number): call for call in self.calls}
        found: dict[tuple[nn.Module, int], Any] = {}
        seen: Counter[nn.Module] = Counter()

        def after(module: nn.Module, _: Any, output: Any) -> None:
            key = (module, seen[module])
            seen[module] += 1
            if key in wanted:
                found[key] = _remembered(output, wanted[key])

        with ExitStack() as stack:
            for module in dict.fromkeys(call.module for call in self.calls):
                stack.callback(module.register_forward_hook(after, prepend=True).remove)
            said = run()
        if len(found) != len(wanted):
            raise RuntimeError("the model takes another way with other samples")
        return said, Replay([(call, found[call.module, call.number]) for call in self.calls])


class Replay:
    """Calls of modules that are answered from memory, in a ``with``."""

    def __init__(self, answers: Sequence[tuple[_Kept, Any]]) -> None:
        self._answers = answers

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, one forward of the same samples leaves out what comes before the layer."""
        waiting: dict[nn.Module, deque[tuple[_Kept, Any]]] = defaultdict(deque)
        for call, output in self._answers:
            waiting[call.module].append((call, output))
        with ExitStack() as stack:
            for module, queue in waiting.items():
                stack.callback(_forward_back(module))
                vars(module)["forward"] = _answering(module.forward, queue)
            yield
        if any(waiting.values()):
            raise RuntimeError("the model takes another way with other neurons silenced")


class _Watch(TorchDispatchMode):
    """Notes the calls of modules and what operations read, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = False
        self.operation_bytes = self.kept_bytes = 0
        self._now = 0
        self._open: list[_Call] = []
        self._ended: list[_Call] = []  # before the layer spoke, not inside of another
        self._numbers: Counter[nn.Module] = Counter()
        self._reads: list[tuple[int, set[int]]] = []

    def before(self, module: nn.Module, _: Any) -> None:
        self._now += 1
        self._open.append(_Call(module, self._numbers[module], self._now))
        self._numbers[module] += 1

    def after(self, _: nn.Module, __: Any, output: Any) -> None:
        self._now += 1
        call = self._open.pop()
        if self.reached:
            return
        call.ended, call.output = self._now, output
        call.versions = [version_of(leaf) for leaf in _tensors(output)]
        while self._ended and self._ended[-1].began > call.began:
            self._ended.pop()
        self._ended.append(call)

    def reach(self, _: Place, __: Any) -> None:
        self.reached = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._now += 1
        read, made = _tensors((args, kwargs)), _tensors(result)
        self._reads.append((self._now, {storage_of(tensor) for tensor in read}))
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
        self.operation_bytes = max(self.operation_bytes, moved)
        return result

    def kept(self, speaker: nn.Module) -> list[_Kept]:
        """The calls to answer from memory; all of what the layer itself returned is needed."""
        # What others return, such as a cache that grows, is not known: these calls run as they are.
        ended = [call for call in self._ended if _is_plain(call.output)]
        starts = [call.began for call in ended]
        needed: set[int] = set()
        for when, read in self._reads:
            last = bisect_right(starts, when) - 1
            if last < 0 or when > ended[last].ended:
                needed |= read
        found = []
        for call in ended:
            tensors = _tensors(call.output)
            own = call is ended[-1] and call.module is speaker
            changed = [version_of(t) != v for t, v in zip(tensors, call.versions, strict=True)]
            wanted = [own or storage_of(tensor) in needed for tensor in tensors]
            held = [tensor for tensor, keep in zip(tensors, wanted, strict=True) if keep]
            self.kept_bytes += sum(tensor.numel() * tensor.element_size() for tensor in held)
            found.append(_Kept(call.module, call.number, tuple(wanted), tuple(changed)))
        return found


def _is_plain(output: Any) -> bool:
    """Whether an output is made of tensors and of what never changes."""
    kinds = (Tensor, bool, int, float, str, type(None))
    return all(isinstance(leaf, kinds) for leaf in pytree.tree_leaves(output))


def _remembered(output: Any, call: _Kept) -> Any:
    """What is needed of an output; of the rest a number that takes its shape."""
    which = iter(zip(call.needed, call.changed, strict=True))

    def part(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        needed, changed = next(which)
        if needed:
            return leaf.clone() if changed else leaf
        nothing = torch.nan if leaf.is_floating_point() else 0
        return leaf.new_full((), nothing).expand(leaf.shape)

    return pytree.tree_map(part, output)


def _answering(forward: Callable[..., Any], queue: deque[tuple[_Kept, Any]]) -> Callable[..., Any]:
    """A forward that says what is in the queue, and then is itself again."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        if not queue:
            return forward(*args, **kwargs)
        call, output = queue.popleft()
        own = iter(zip(call.needed, call.changed, strict=True))

        def part(leaf: Any) -> Any:
            return leaf.clone() if isinstance(leaf, Tensor) and all(next(own)) else leaf

        return pytree.tree_map(part, output) if any(call.changed) else output

    return answer


def _forward_back(module: nn.Module) -> Callable[[], None]:
    """What puts the module's own forward back."""
    mine = vars(module)
    if "forward" not in mine:
        return lambda: mine.pop("forward", None)
    own = mine["forward"]
    return lambda: mine.update(forward=own)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
