"""What a report says of one neuron: the declaration of every column."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from lightning_neurocorr.report.declared import Column


def column(
    meaning: str,
    *,
    unit: str = "",
    format: str = "number",  # noqa: A002 -- the word of `Column`
    null: str = "",
    shown: tuple[str, ...] = (),
) -> Any:
    """A field of :class:`NeuronRow` that is a column of the report: see ``Column``."""
    return field(
        default=math.nan,
        metadata={"meaning": meaning, "unit": unit, "format": format, "null": null, "shown": shown},
    )


def fact(meaning: str, *, format: str = "text") -> Any:  # noqa: A002
    """A field of :class:`NeuronRow` that the report's columns do not hold, but give."""
    return field(metadata={"meaning": meaning, "format": format})


# The views of a report that pick their columns by `shown`.
LIST, TENSORBOARD = "list", "tensorboard"
_BOTH = (LIST, TENSORBOARD)
_LOGITS = "logits"


@dataclass(frozen=True, kw_only=True)
class NeuronRow:
    """What is known of one neuron; undefined is NaN.

    Here every column of a report is declared: its name, meaning, unit, format, what it is where
    there is nothing to find, and which views show it unasked. All tables follow from it.
    """

    layer: str = fact("Dotted name of the layer.")
    unit: int = fact("Index of the neuron in its layer.", format="step")

    # Encodes: does the activation go with the advantage?
    r: float = column(
        "Pearson correlation of activation and advantage.",
        format="signed", null="0", shown=_BOTH,
    )  # fmt: skip
    r_low: float = column(
        "Lower end of the 95 % interval of r (Fisher's z).", format="signed", shown=_BOTH
    )
    r_high: float = column("Upper end of that interval.", format="signed", shown=_BOTH)
    p_value: float = column(
        "Two-sided p of r; none where too few samples are expected to be co-active.",
        format="small", null="uniform",
    )  # fmt: skip
    q_value: float = column(
        "Benjamini-Hochberg q of r over the neurons of the layer that have a p.",
        format="small", null="1", shown=_BOTH,
    )  # fmt: skip
    r_within_class: float = column(
        "r with the class means of activation and advantage taken out.",
        format="signed", null="0", shown=(TENSORBOARD,),
    )  # fmt: skip
    p_within_class: float = column("p of r_within_class.", format="small", null="uniform")
    q_within_class: float = column("q of r_within_class.", format="small", null="1")
    r_replicated: float = column(
        "r on the half of the samples that supports it less: an estimate that the selection of the "
        "neuron by its r cannot have inflated.",
        format="signed", null="0", shown=(TENSORBOARD,),
    )  # fmt: skip
    r_fold_0: float = column("r on one half of the samples.", format="signed", null="0")
    r_fold_1: float = column("r on the other half.", format="signed", null="0")

    # The parts of the advantage, each within classes.
    r_baseline_wrong: float = column(
        "Among samples that the model gets right: correlation of activation and the baseline being "
        "wrong, within class.",
        format="signed", null="0",
    )  # fmt: skip
    q_baseline_wrong: float = column(
        "q of r_baseline_wrong being positive, within the layer.", format="small", null="1"
    )
    r_model_right: float = column(
        "Among samples that the baseline gets wrong: correlation of activation and the model being "
        "right, within class.",
        format="signed", null="0",
    )  # fmt: skip
    q_model_right: float = column(
        "q of r_model_right being positive, within the layer.", format="small", null="1"
    )
    q_only_model: float = column(
        "q of r_baseline_wrong and r_model_right both being positive, from the larger p.",
        format="small", null="1",
    )  # fmt: skip
    r_baseline_right: float = column(
        "Among samples that the model gets wrong: correlation of activation and the baseline being "
        "right, within class.",
        format="signed", null="0",
    )  # fmt: skip
    q_baseline_right: float = column(
        "q of r_baseline_right being positive, within the layer.", format="small", null="1"
    )
    r_model_wrong: float = column(
        "Among samples that the baseline gets right: correlation of activation and the model being "
        "wrong, within class.",
        format="signed", null="0",
    )  # fmt: skip
    q_model_wrong: float = column(
        "q of r_model_wrong being positive, within the layer.", format="small", null="1"
    )
    q_only_baseline: float = column(
        "q of r_baseline_right and r_model_wrong both being positive, from the larger p.",
        format="small", null="1",
    )  # fmt: skip
    parts_replicated: float = column(
        "The smallest r of a part in either half of the samples: the parts of the model's "
        "advantage, or of the baseline's where r is negative.",
        format="signed", null="0",
    )  # fmt: skip

    # The activation.
    contrast_t: float = column(
        "Smallest t of only_model against each other outcome group.", null="0", shown=(TENSORBOARD,)
    )
    mean_both: float = column(
        "Mean activation over the samples that both get right.", shown=(TENSORBOARD,)
    )
    mean_only_model: float = column(
        "Mean activation where only the model is right.", shown=(TENSORBOARD,)
    )
    mean_only_baseline: float = column(
        "Mean activation where only the baseline is right.", shown=(TENSORBOARD,)
    )
    mean_neither: float = column("Mean activation where neither is right.", shown=(TENSORBOARD,))
    mean: float = column("Mean activation.")
    std: float = column("Standard deviation of the activation.")
    active: float = column("Share of samples in which the activation is not 0.", format="share")
    mean_over_positions: float = column(
        "Mean activation over samples and positions, whatever the pooling: the centre of "
        "attribution, and what a silenced neuron says."
    )

    # Used: does the answer depend on it where the model wins?
    attribution: float = column(
        "Mean over only_model samples of (activation - mean_over_positions) x gradient of "
        "logit[truth] - logit[baseline's answer].",
        unit=_LOGITS, format="signed", null="0", shown=_BOTH,
    )  # fmt: skip
    attribution_low: float = column(
        "Lower end of the 95 % interval of attribution.",
        unit=_LOGITS, format="signed", shown=(TENSORBOARD,),
    )  # fmt: skip
    attribution_high: float = column(
        "Upper end of that interval.", unit=_LOGITS, format="signed", shown=(TENSORBOARD,)
    )
    attribution_q: float = column(
        "q of attribution = 0, within the layer.", format="small", null="1"
    )
    attribution_contrast: float = column(
        "The neuron's share of its layer's sum of |attribution| where only the model is right, "
        "minus that on matched samples that both get right, of the same class and with the same "
        "rival.",
        format="signed", null="0",
    )  # fmt: skip
    attribution_contrast_low: float = column(
        "Lower end of the 95 % interval of attribution_contrast.", format="signed"
    )
    attribution_contrast_high: float = column("Upper end of that interval.", format="signed")
    attribution_contrast_q: float = column(
        "q of a share that is no larger where only the model is right, within the layer.",
        format="small", null="1",
    )  # fmt: skip
    attribution_shared: float = column(
        "The share on these matched samples, where a against b counts as much as b against a for "
        "all classes a and b. Below 0 the neuron speaks against what it tells of the class.",
        format="signed", null="0",
    )  # fmt: skip

    # Needed: what is lost without it?
    ablation: float = column(
        "What silencing costs in logit[truth] - logit[baseline's answer] on held-out advantage "
        "samples beyond what it costs on shared ones (difference in differences).",
        unit=_LOGITS, format="signed", null="0", shown=_BOTH,
    )  # fmt: skip
    ablation_control: float = column(
        "The same for random neurons of the layer, on average.",
        unit=_LOGITS, format="signed", shown=(TENSORBOARD,),
    )  # fmt: skip
    ablation_p: float = column(
        "Share of random neurons that cost at least as much.", format="small", null="uniform"
    )
    ablation_q: float = column(
        "q of costing advantage samples no more than shared ones, beyond what random neurons cost, "
        "over all neurons silenced (permutation of samples).",
        format="small", null="1",
    )  # fmt: skip
    ablation_advantage: float = column(
        "Loss of accuracy on held-out advantage samples.", format="share", null="0"
    )
    ablation_shared: float = column(
        "Loss of accuracy on class-matched held-out shared samples.", format="share", null="0"
    )

    # The second pass.
    auroc: float = column(
        "How well the activation tells only_model samples from the others.", null="0.5"
    )
    spearman: float = column(
        "Rank correlation of activation and advantage.", format="signed", null="0"
    )
    p_max_t: float = column(
        "Family-wise p of r among the neurons of the second pass, by permutation within classes.",
        format="small", null="uniform",
    )  # fmt: skip

    # History.
    risen_at: float = column(
        "The step of the validation from which on r kept at least half of what it is now; none "
        "where r is not positive, or where history does not reach.",
        unit="step", format="step", shown=(TENSORBOARD,),
    )  # fmt: skip
    rank_before: float = column(
        "The neuron's place in its layer by r at the validation before, from 1.",
        unit="rank", format="count",
    )  # fmt: skip

    dead: bool = fact("Whether the neuron was the same on every sample.", format="yes_no")
    verdict: str = fact("What of this can be believed, in words.")

    @property
    def name(self) -> str:
        """``layer:unit``."""
        return f"{self.layer}:{self.unit}"


# Everything that a row says, in order; of these, the columns of numbers that a report holds.
DECLARED = {f.name: Column(f.name, **f.metadata) for f in fields(NeuronRow)}
COLUMNS = tuple(f.name for f in fields(NeuronRow) if f.default is not MISSING)
SMALL_IS_STRONG = {name for name in COLUMNS if DECLARED[name].small_is_strong}

NeuronRow.__doc__ = "\n        ".join(
    [
        f"{NeuronRow.__doc__}\n    Attributes:",
        *(f"{c.name}: {c.meaning}" for c in DECLARED.values()),
    ]
)
