"""Two perceptrons that saw different digits, fused in several proportions: the paper's Figure 2, and corrections.

    WBFUSE_ZOO=folder WBFUSE_DATA=folder OMP_NUM_THREADS=1 python benchmarks/bench_heterogeneous.py [--quick] [--figure FILE]

Both variables are optional; base models that WBFUSE_ZOO lacks are trained (see base_models.py). Parent A saw every 4 and a tenth
of the rest of MNIST's training images, B the other nine tenths and no 4. Printed and drawn: accuracies in % on the 10,000 test
images over the proportion of A; of methods on images mean and standard deviation over three random choices of 1,000 training
images without labels. The ensemble is the weighted mean of the logits; the plain average of the narrow parents is as narrow. Fits
on noise, and those without regression, see no data at all. All other parameters are the defaults. --quick takes equal proportions
alone, and draws only with --figure.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from base_models import accuracy, base_model, logits, mnist
from matplotlib.figure import Figure
from tables import show, spread
from torch import nn

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion

PROPORTIONS = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
IMAGES, IMAGE_SEEDS = 1000, [0, 1, 2]


@dataclass(frozen=True)
class Setting:
    """Parents, by name and seed, and the parameters of their fusion."""

    title: str
    parents: tuple[tuple[str, int], tuple[str, int]]
    options: Mapping[str, object] = field(default_factory=dict)


SETTINGS = [
    Setting("MLPNet into MLPNet", (("mlpnet+A", 0), ("mlpnet+B", 1))),
    Setting(
        "Parents of half the width into MLPNet",
        (("mlpsmall+A", 0), ("mlpsmall+B", 1)),
        {"target_widths": [400, 200, 100], "merge": "all"},
    ),
]

# Colours of Okabe and Ito, told apart in every kind of colour vision; markers and dashes tell the lines apart in grey.
STYLES: dict[str, dict] = {
    "ensemble": {"color": "black", "marker": "D", "linestyle": "--"},
    "WB fusion + regression on images": {"color": "#D55E00", "marker": "o"},
    "WB fusion + regression on noise": {"color": "#CC79A7", "marker": "s"},
    "WB fusion": {"color": "#0072B2", "marker": "^"},
    "plain average + regression on images": {"color": "#009E73", "marker": "v"},
    "plain average": {"color": "#E69F00", "marker": "x"},
    "parent A": {"color": "0.4", "linestyle": "-."},
    "parent B": {"color": "0.4", "linestyle": ":"},
}
FIGURE = Path(__file__).parent / "figures" / "heterogeneous.png"

Scores = dict[str, list[list[float]]]
"""Of each method, for each proportion, accuracies over the choices of images, or a single one."""


def score(model: nn.Module) -> float:
    return accuracy(logits(model, mnist().X_test), mnist().y_test)


def measure(setting: Setting, proportions: Sequence[float]) -> Scores:
    X, y = mnist().X_test, mnist().y_test
    parents = [base_model(*parent) for parent in setting.parents]
    images = mnist().X_train
    choices = [np.random.RandomState(seed).choice(len(images), IMAGES, replace=False) for seed in IMAGE_SEEDS]
    inputs = [FusionInput(parents, images[rows]) for rows in choices]
    outputs = [logits(model, X) for model in parents]
    scores: Scores = {label: [] for label in STYLES}
    for proportion in proportions:
        weights = [proportion, 1 - proportion]
        wb = WassersteinFusion(weights=weights, random_state=0, correction=None, cost="weight", **setting.options)
        average = VanillaAveraging(weights=weights, random_state=0)
        for label, output in zip(("parent A", "parent B"), outputs, strict=True):
            scores[label].append([accuracy(output, y)])
        scores["ensemble"].append([accuracy(sum(w * o for w, o in zip(weights, outputs, strict=True)), y)])
        for label, fusion in (("WB fusion", wb), ("plain average", average)):
            scores[label].append([score(fusion.fit(parents).fused_model_)])
            fusion.set_params(correction="regression")
            scores[f"{label} + regression on images"].append([score(fusion.fit(rows).fused_model_) for rows in inputs])
        wb.set_params(probe="noise")
        scores["WB fusion + regression on noise"].append([score(wb.fit(parents).fused_model_)])
    return scores


def draw(file: Path, results: Sequence[Scores], proportions: Sequence[float]) -> None:
    """A panel for each setting; the depths of the plain average are cut off, and said in numbers."""
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    shown = [np.mean(scores[label], 1) for scores in results for label in STYLES if label != "plain average"]
    bottom, top = np.min(shown) - 2, np.max(shown) + 1
    for setting, axes, scores in zip(SETTINGS, panels, results, strict=True):
        for label, style in STYLES.items():
            means = np.mean(scores[label], 1)
            if label.startswith("parent"):
                axes.axhline(means[0], label=label, linewidth=1.4, zorder=1, **style)
                continue
            axes.plot(proportions, means, label=label, markersize=4.5, linewidth=1.4, **style)
            if len(scores[label][0]) > 1:
                sd = np.std(scores[label], axis=1, ddof=1)
                axes.fill_between(proportions, means - sd, means + sd, color=style["color"], alpha=0.25, linewidth=0)
        lowest, position = min(zip((s for (s,) in scores["plain average"]), proportions, strict=True))
        if lowest < bottom:
            arrow = {"arrowstyle": "->", "color": STYLES["plain average"]["color"]}
            where = {"xytext": (0, 14), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"lowest {lowest:.2f}", (position, bottom), arrowprops=arrow, **where)
        axes.set(xlabel="Proportion of parent A", xticks=proportions, ylim=(bottom, top))
        axes.set_title(setting.title, fontsize="medium")
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Test accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=200)
    print(f"\nFigure: {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuse parents that saw different digits, in several proportions.")
    parser.add_argument("--quick", action="store_true", help="equal proportions alone; draws only with --figure")
    parser.add_argument("--figure", type=Path, help=f"where to draw, by default {FIGURE.name} in {FIGURE.parent}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    proportions = [0.5] if options.quick else PROPORTIONS
    results = [measure(setting, proportions) for setting in SETTINGS]
    for setting, scores in zip(SETTINGS, results, strict=True):
        rows = [[label, *(spread(values) for values in scores[label])] for label in STYLES]
        show(setting.title, ["proportion of A", *map(str, proportions)], rows)
    if options.figure or not options.quick:
        draw(options.figure or FIGURE, results, proportions)


if __name__ == "__main__":
    main()
