"""What a report says of one neuron, one layer and all samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Every column of a row that is a number, in the order of the table.
COLUMNS = (
    "r", "r_low", "r_high", "p_value", "q_value",
    "r_within_class", "p_within_class", "q_within_class", "r_replicated",
    "r_fold_0", "r_fold_1",
    "r_baseline_wrong", "q_baseline_wrong", "r_model_right", "q_model_right", "q_only_model",
    "r_baseline_right", "q_baseline_right", "r_model_wrong", "q_model_wrong", "q_only_baseline",
    "parts_replicated",
    "contrast_t", "mean_both", "mean_only_model", "mean_only_baseline", "mean_neither",
    "mean", "std", "active", "mean_over_positions",
    "attribution", "attribution_low", "attribution_high", "attribution_q", "attribution_contrast",
    "attribution_contrast_low", "attribution_contrast_high", "attribution_contrast_q",
    "ablation", "ablation_control", "ablation_p", "ablation_q",
    "ablation_advantage", "ablation_shared",
    "auroc", "spearman", "p_max_t",
    "risen_at", "rank_before",
)  # fmt: skip

SMALL_IS_STRONG = {
    "p_value",
    "q_value",
    "p_within_class",
    "q_within_class",
    "q_baseline_wrong",
    "q_model_right",
    "q_only_model",
    "q_baseline_right",
    "q_model_wrong",
    "q_only_baseline",
    "attribution_q",
    "attribution_contrast_q",
    "ablation_p",
    "ablation_q",
    "p_max_t",
    "risen_at",
    "rank_before",
}


@dataclass(frozen=True)
class Outcomes:
    """How many samples fall in each outcome group, and whether the model beats the baseline.

    Where right and wrong mean nothing (regression, say) all of it is NaN: ``Outcomes()``.

    Attributes:
        both: Samples that model and baseline both get right.
        only_model: Samples that only the model gets right.
        only_baseline: Samples that only the baseline gets right.
        neither: Samples that neither gets right.
        p_value: McNemar's exact two-sided p; NaN where no sample tells the two apart.
    """

    both: float = math.nan
    only_model: float = math.nan
    only_baseline: float = math.nan
    neither: float = math.nan
    p_value: float = math.nan

    @property
    def n(self) -> int:
        """Number of samples that are in a group; 0 where there are no groups."""
        total = sum(self.counts.values())
        return 0 if math.isnan(total) else int(total)

    @property
    def model_accuracy(self) -> float:
        """Share of samples that the model gets right."""
        return (self.both + self.only_model) / self.n if self.n else math.nan

    @property
    def baseline_accuracy(self) -> float:
        """Share of samples that the baseline gets right."""
        return (self.both + self.only_baseline) / self.n if self.n else math.nan

    @property
    def counts(self) -> dict[str, float]:
        """The four counts by the name of their group."""
        return {
            name: getattr(self, name) for name in ("both", "only_model", "only_baseline", "neither")
        }


@dataclass(frozen=True)
class NeuronRow:
    """What is known of one neuron; undefined is NaN.

    Attributes:
        layer: Dotted name of the layer.
        unit: Index of the neuron in its layer.
        r: Pearson correlation of activation and advantage.
        r_low: Lower end of its 95 % interval (Fisher's z).
        r_high: Upper end.
        p_value: Two-sided p of r; NaN where too few samples are expected to be co-active.
        q_value: Benjamini-Hochberg q over the neurons of the layer that have a p.
        r_within_class: r with the class means of activation and advantage taken out.
        p_within_class: Its p.
        q_within_class: Its q.
        r_replicated: r on the half of the samples that supports it less: an estimate that the
            selection of the neuron by its r cannot have inflated.
        r_fold_0: r on one half of the samples.
        r_fold_1: r on the other half.
        r_baseline_wrong: Among samples that the model gets right: correlation of activation and
            the baseline being wrong, within class.
        q_baseline_wrong: Benjamini-Hochberg q of its being positive, within the layer.
        r_model_right: Among samples that the baseline gets wrong: correlation of activation and
            the model being right, within class.
        q_model_right: Its q.
        q_only_model: q of both being positive, from the larger p of the two.
        r_baseline_right: Among samples that the model gets wrong: correlation of activation and
            the baseline being right, within class.
        q_baseline_right: Its q.
        r_model_wrong: Among samples that the baseline gets right: correlation of activation and
            the model being wrong, within class.
        q_model_wrong: Its q.
        q_only_baseline: q of the last two being positive, from the larger p.
        parts_replicated: The smallest r of a part in either half of the samples: the parts of the
            model's advantage, or of the baseline's where r is negative.
        contrast_t: Smallest t of only_model against each other outcome group.
        mean_both: Mean activation over the samples that both get right.
        mean_only_model: Mean activation where only the model is right.
        mean_only_baseline: Mean activation where only the baseline is right.
        mean_neither: Mean activation where neither is right.
        mean: Mean activation.
        std: Standard deviation of the activation.
        active: Share of samples in which the activation is not 0.
        mean_over_positions: Mean activation over samples and positions, whatever the pooling: the
            centre of attribution, and what a silenced neuron says.
        attribution: Mean over only_model samples of (activation - mean_over_positions) x gradient
            of logit[truth] - logit[baseline's answer], in logits.
        attribution_low: Lower end of its 95 % interval.
        attribution_high: Upper end.
        attribution_q: Benjamini-Hochberg q of attribution = 0 within the layer.
        attribution_contrast: The neuron's share of its layer where only the model is right, minus
            that on matched samples that both get right, of the same class and with the same rival.
            The share is attribution over the layer's sum of |attribution|.
        attribution_contrast_low: Lower end of its 95 % interval.
        attribution_contrast_high: Upper end.
        attribution_contrast_q: Benjamini-Hochberg q, within the layer, of a share that is no larger
            where only the model is right.
        ablation: What silencing costs in logit[truth] - logit[baseline's answer] on held-out
            advantage samples beyond what it costs on shared ones (difference in differences).
        ablation_control: The same for random neurons of the layer, on average.
        ablation_p: Share of random neurons that cost at least as much.
        ablation_q: Benjamini-Hochberg q, over all neurons silenced, of costing advantage samples no
            more than shared ones, beyond what random neurons cost (permutation of samples).
        ablation_advantage: Loss of accuracy on held-out advantage samples.
        ablation_shared: Loss of accuracy on class-matched held-out shared samples.
        auroc: How well the activation tells only_model samples from the others (second pass).
        spearman: Rank correlation with the advantage (second pass).
        p_max_t: Family-wise p of r among the neurons of the second pass, by permutation within
            classes.
        risen_at: The step of the validation from which on r kept at least half of what it is now;
            NaN where r is not positive, or where history does not reach.
        rank_before: The neuron's place in its layer by r at the validation before, from 1.
        dead: Whether the neuron was the same on every sample.
        verdict: What of this can be believed, in words.
    """

    layer: str
    unit: int
    r: float
    r_low: float
    r_high: float
    p_value: float
    q_value: float
    r_within_class: float
    p_within_class: float
    q_within_class: float
    r_replicated: float
    r_fold_0: float
    r_fold_1: float
    r_baseline_wrong: float
    q_baseline_wrong: float
    r_model_right: float
    q_model_right: float
    q_only_model: float
    r_baseline_right: float
    q_baseline_right: float
    r_model_wrong: float
    q_model_wrong: float
    q_only_baseline: float
    parts_replicated: float
    contrast_t: float
    mean_both: float
    mean_only_model: float
    mean_only_baseline: float
    mean_neither: float
    mean: float
    std: float
    active: float
    mean_over_positions: float
    attribution: float
    attribution_low: float
    attribution_high: float
    attribution_q: float
    attribution_contrast: float
    attribution_contrast_low: float
    attribution_contrast_high: float
    attribution_contrast_q: float
    ablation: float
    ablation_control: float
    ablation_p: float
    ablation_q: float
    ablation_advantage: float
    ablation_shared: float
    auroc: float
    spearman: float
    p_max_t: float
    risen_at: float
    rank_before: float
    dead: bool
    verdict: str

    @property
    def name(self) -> str:
        """``layer:unit``."""
        return f"{self.layer}:{self.unit}"


@dataclass(frozen=True)
class LayerSummary:
    """One layer at a glance.

    Attributes:
        layer: Dotted name.
        neurons: Number of neurons, D.
        dead: How many were the same on every sample.
        strongest: Unit with the largest r, -1 where there is none.
        max_r: Its r.
        min_r: The most negative r.
        significant: Neurons with ``q_value <= 0.05``.
        noise_ceiling: The |r| that the largest of D unrelated neurons reaches by chance.
        stability: Share of the top list by r that the list of the validation before shares
            (Jaccard index); NaN where there was none.
        verdict: The layer in words.
        read_at: Where it is read: its own name, or the place behind it; empty where unknown.
    """

    layer: str
    neurons: int
    dead: int
    strongest: int
    max_r: float
    min_r: float
    significant: int
    noise_ceiling: float
    stability: float
    verdict: str
    read_at: str = ""


def noise_ceiling(num_neurons: int, n: float) -> float:
    """The |r| that the largest of D unrelated neurons reaches by chance: sqrt(2 ln(2 D) / n)."""
    if num_neurons < 1 or n <= 0:
        return math.nan
    return min(1.0, math.sqrt(2 * math.log(2 * num_neurons) / n))
