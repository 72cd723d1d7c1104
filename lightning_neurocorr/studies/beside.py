"""Another network on the same batches: the baseline where it is one, or an untrained copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from lightning_neurocorr import baselines as B
from lightning_neurocorr.activations import (
    At,
    Layers,
    Pooling,
    SiteRecorder,
    SitesFound,
    TokenMasks,
    aside,
    choose_layers,
    eager,
)
from lightning_neurocorr.isolation.compilation import is_compiled
from lightning_neurocorr.isolation.evaluating import evaluating
from lightning_neurocorr.isolation.randomness import PrivateRandomness
from lightning_neurocorr.isolation.swapping import call_with
from lightning_neurocorr.isolation.untrained import untrained_weights
from lightning_neurocorr.studies.heard import Start
from lightning_neurocorr.validation.options import Options


class Beside:
    """Runs another network on batches and gives the activations of its layers.

    It costs a forward of that network for every batch; none where the network is the baseline's and
    a listener names it in ``overhears``. Layers that cannot be read are left out.

    Args:
        module: The network.
        call: Runs it on a batch; what it returns is not looked at.
        layers: Which of its layers, as `NeuronAdvantage` takes them; all by default.
        pooling: As for the model.
        at: As for the model.

    Attributes:
        problems: Why a layer has no activations.
        rounding: By how much each neuron may be off by rounding alone, ``(D,)`` by layer.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> beside = Beside(net, lambda batch: net(batch[0]))
        >>> beside((torch.zeros(5, 3), None))["0"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        module: nn.Module,
        call: Callable[[Any], Any],
        layers: Layers | Mapping[str, nn.Module] = None,
        pooling: Pooling = "mean",
        at: At = "activation",
    ) -> None:
        self.module, self.call = module, call
        self.layers = dict(layers) if isinstance(layers, Mapping) else choose_layers(module, layers)
        self.problems: dict[str, str] = {}
        self.rounding: dict[str, Tensor | None] = {}
        self._pooling: Pooling = pooling
        self._at: At = at
        self._found: SitesFound | None = None
        self._overheard: tuple[Any, dict[str, Tensor]] | None = None

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Activations ``(N, D)`` by layer, for every row of the batch, padding too.

        Of a batch that was heard, ``heard.rows`` are those that count.
        """
        overheard, self._overheard = self._overheard, None
        if overheard is not None and overheard[0] is batch:
            return overheard[1]
        recorder = self._recorder()
        with eager(self.module), TokenMasks(self.module), recorder:
            recorder.begin(batch)
            try:
                self.call(batch)
            finally:
                recorder.pause()
            return self._taken(*recorder.take(), recorder)

    @contextmanager
    def overhearing(self, batch: Any) -> Iterator[None]:
        """Inside, somebody else asks the network in an `aside`; then a call for ``batch`` is free.

        A network that was compiled answers as if nobody heard it, and is run again.

        Args:
            batch: What it is asked about.
        """
        self._overheard = None
        if is_compiled(self.module):
            yield
            return
        recorder = self._recorder()
        with ExitStack() as stack:
            with aside():  # at the depth where a baseline is asked
                stack.enter_context(TokenMasks(self.module))
                stack.enter_context(recorder)
                recorder.begin(batch)
            try:
                yield
            finally:
                recorder.pause()
            try:
                taken, problems = recorder.take()
            except Exception:  # noqa: BLE001 -- run again, it says so where that is guarded
                return
            if taken:  # else it was not asked: a cache has answered
                self._overheard = batch, self._taken(taken, problems, recorder)

    def _recorder(self) -> SiteRecorder:
        recorder = SiteRecorder(
            self.module, self.layers, self._pooling, at=self._at, found=self._found
        )
        recorder.rounding |= self.rounding  # the first batch says it
        return recorder

    def _taken(
        self, taken: dict[str, Tensor], problems: dict[str, str], recorder: SiteRecorder
    ) -> dict[str, Tensor]:
        self._found, self.rounding = recorder.found, dict(recorder.rounding)
        for name, why in problems.items():
            self.problems.setdefault(name, why)
        return {name: part for name, part in taken.items() if name not in self.problems}

    @classmethod
    def baseline(cls, options: Options, layers: Layers = None) -> Self | None:
        """The baseline's network with the weights that answer; None where the baseline is none.

        Args:
            options: What the user asked for.
            layers: Which of its layers.
        """
        baseline: Any = options.baseline
        while isinstance(baseline, B.CachedBaseline):  # it would not ask the network again
            baseline = baseline.baseline
        if not isinstance(baseline, B.Networked):
            return None
        ask: Any = baseline
        return cls(baseline.network(), ask, layers, options.pooling)

    @classmethod
    def untrained(cls, start: Start, layers: Iterable[str] | None = None, seed: int = 0) -> Self:
        """The model itself with weights as before training; see ``untrained_weights``.

        Args:
            start: What is known before the first batch.
            layers: Names of watched layers; all of them by default.
            seed: Of the weights.
        """
        weights = untrained_weights(start.module, seed)
        randomness = PrivateRandomness()

        def call(batch: Any) -> Any:
            args, kwargs = start.arguments(batch)
            with evaluating(start.module, randomness, autocast=True), start.autocast():
                return call_with(start.module, weights, args, kwargs)

        names = start.layers if layers is None else layers
        chosen = {name: start.layers[name] for name in names}
        return cls(start.model, call, chosen, start.options.pooling, start.options.at)
