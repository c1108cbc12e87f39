"""What the form calls its settings and their choices."""

from __future__ import annotations

from barber.config import AUTO, Allocation, Granularity, Metric, Order, Refiner, Target

PATTERNS = ("50%", "60%", "70%", "2:4", "4:8")
DATASETS = ("storyteller", "wikitext2", "c4", "ptb")
METHOD_TITLES = {
    "magnitude": "Magnitude",
    "wanda": "Wanda",
    "wandd": "Wanda, derivative",
    "sparsegpt": "SparseGPT",
    "ria": "RIA",
    "random": "Random (control)",
}
METRIC_TITLES = {Metric.WD: "weight times gradient", Metric.W: "weight alone", Metric.D: "gradient alone"}
GRANULARITY_TITLES = {
    Granularity.BLOCK: "the whole block",
    Granularity.LAYER: "one matrix",
    Granularity.OUTPUT: "one output row",
    Granularity.INPUT: "one input column",
}
REFINER_TITLES = {
    Refiner.BARBER: "Barber: by saliency",
    Refiner.ONE_SWAP: "Exact one-swaps in each row",
    Refiner.DSNOT: "DSnoT: by each row's mean error",
}
TARGET_TITLES = {
    Target.BLOCK: "itself, unpruned",
    Target.DENSE_STREAM: "the unpruned model",
}
ALLOCATION_TITLES = {
    Allocation.UNIFORM: "the same in every layer",
    Allocation.OWL: "by outliers (OWL)",
    Allocation.SALIENCY: "by saliency",
}
ORDER_TITLES = {
    Order.PAPER: "the whole model first",
    Order.ONE_PASS: "each block before its rebuild",
}
FIXED = "fixed"  # beside AUTO: the form's switch between the two kinds of threshold
SWAPS_TITLES = {AUTO: "chosen by held-out error", FIXED: "fixed threshold"}
CHOICES = {
    "method": METHOD_TITLES,
    "metric": METRIC_TITLES,
    "granularity": GRANULARITY_TITLES,
    "refiner": REFINER_TITLES,
    "target": TARGET_TITLES,
    "allocation": ALLOCATION_TITLES,
    "order": ORDER_TITLES,
}
LABELS = {
    "threshold": "Threshold",
    "rounds": "Rounds at most",
    "nsamples": "Samples",
    "seqlen": "Tokens each",
    "seed": "Seed",
    "eval_windows": "Windows at most",
    "max_memory": "Memory at most",
}
