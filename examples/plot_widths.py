"""
Fuse networks with different widths
===================================

The couplings of Wasserstein fusion are transport plans, not permutations, so
parents and target may all have different widths. This example fuses three
perceptrons, two narrow ones and one with twice their width, into targets of several
widths.
"""

# %%
# Parents and targets
# -------------------
# Two parents have widths 64-64-32-10, and one has 64-128-64-10. The targets have
# widths 64-2h-h-10. ``target_widths`` accepts a dict by neuron group (``graph_``
# lists their names) or a list in the same order. The experiment is repeated with
# three draws of the seeds.

import matplotlib.pyplot as plt
import numpy as np
import torch

from sklearn_wbfuse import VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp

torch.set_num_threads(1)  # small networks run faster on one thread
digits = load_digits()
widths = [16, 32, 48, 64]


@torch.no_grad()
def accuracy(*models):
    """Return the accuracy in percent of the mean of the models' softmax outputs."""
    mean = sum(model(digits.X_test).softmax(1) for model in models)
    return 100 * float((mean.argmax(1) == digits.y_test).float().mean())


def fuse(models, h):
    fusion = WassersteinFusion(target_widths={"layers.0": 2 * h, "layers.1": h}, random_state=0)
    return fusion.fit(models).fused_model_


fused, single, ensemble, average = [], [], [], []
for seed in (0, 3, 6):
    parents = [
        train_mlp(digits.X_train, digits.y_train, (64, 2 * h, h, 10), seed + i)  # a different seed for each
        for i, h in enumerate((32, 32, 64))
    ]
    fused.append([accuracy(fuse(parents, h)) for h in widths])
    single.append(np.mean([accuracy(model) for model in parents]))
    ensemble.append(accuracy(*parents))
    average.append(accuracy(VanillaAveraging().fit(parents[:2]).fused_model_))

# %%
# Accuracy over width
# -------------------
# The band shows the range over the three draws, and the lines are their means. Plain
# averaging needs equal widths, so it uses only the two narrow parents. The ensemble
# runs all three networks; every fused network is a single one.

figure, ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
ax.axhline(np.mean(ensemble), color="black", linestyle="--", label="ensemble of the parents")
ax.axhline(np.mean(single), color="#009E73", label="one parent, on average")
ax.fill_between(widths, np.min(fused, 0), np.max(fused, 0), color="#0072B2", alpha=0.15, linewidth=0)
ax.plot(widths, np.mean(fused, 0), "o-", color="#0072B2", label="fused, all three parents")
ax.axhline(np.mean(average), color="#D55E00", linestyle=":", linewidth=2, label="plain average, two narrow parents")
ax.set(xlabel="Width $h$ of the target 64-$2h$-$h$-10", ylabel="Test accuracy (%)", xticks=widths)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="center right")

# %%
# The same as numbers:

for name, values in [("one parent", single), ("ensemble", ensemble), ("plain average", average)]:
    print(f"{name:14}{np.mean(values):6.1f} %")
for h, value in zip(widths, np.mean(fused, 0), strict=True):
    print(f"fused, h = {h:2} {value:6.1f} %")
