"""
Fuse two networks of different seeds
====================================

Two networks of one architecture, trained on the same rows from different
seeds, compute nearly the same function. Yet the average of their parameters is
a poor network: the neurons of one have nothing to do with the neurons of the
other that happen to stand at the same places. Fusion finds out which neurons
correspond, averages, and corrects the result to what the parents compute.
"""

# %%
# The parents
# -----------
# Two perceptrons 64-64-32-10 on scikit-learn's digits. They have the same
# accuracy, but their first layers start from other random numbers and see the
# rows in another order.

import torch

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp
from sklearn_wbfuse.inspection import InterpolationDisplay, ProbeDisplay

torch.set_num_threads(1)  # networks this small are faster on one
digits = load_digits()
parents = [train_mlp(digits.X_train, digits.y_train, (64, 64, 32, 10), seed) for seed in (0, 1)]

# %%
# Fusing
# ------
# Neither estimator looks at a single row of data here, and nothing is trained.
# The fused network has the widths and the cost of one parent.

average = VanillaAveraging().fit(parents)
fusion = WassersteinFusion(random_state=0).fit(parents)
print(fusion.graph_)

# %%
# ``agreement_`` tells how often the fused network predicts what its parents
# predict, on the inputs that the correction ran on. These are drawn: for a
# network that begins with a linear layer, noise in the directions that the
# parents look at.

print(fusion.agreement_)
ProbeDisplay.from_models(parents)

# %%
# If there are rows, without labels, they do better. ``correction=None`` leaves
# the correction out:

on_rows = WassersteinFusion(random_state=0).fit(FusionInput(parents, digits.X_train))
barycenter = WassersteinFusion(correction=None).fit(parents)

# %%
# Accuracy on rows that no network has seen, beside that of the ensemble (the
# mean of the parents' softmax outputs), which costs twice as much to run:


@torch.no_grad()
def accuracy(*models):
    mean = sum(model(digits.X_test).softmax(1) for model in models)
    return float((mean.argmax(1) == digits.y_test).float().mean())


for name, models in {
    "parent, seed 0": parents[:1],
    "parent, seed 1": parents[1:],
    "ensemble of both": parents,
    "plain average": [average.fused_model_],
    "fused, no correction": [barycenter.fused_model_],
    "fused": [fusion.fused_model_],
    "fused on rows": [on_rows.fused_model_],
}.items():
    print(f"{name:22}{accuracy(*models):6.1%}")

# %%
# The line between the parents
# ----------------------------
# ``transform`` brings both parents into the neuron order of the fused network.
# They still compute what they computed before, but the straight line that
# joins them no longer leads over a high barrier, neither in the loss, the
# cross-entropy of the test rows, nor in the error. The middle of the dashed
# line is the plain average, the middle of the other one the fused network
# before its correction.

display = InterpolationDisplay.from_estimator(fusion, parents, digits.X_test, digits.y_test, metric=("loss", "error"))

# %%
print(f"Barrier of the error: {display.barrier_before:.1f} points before alignment, {display.barrier_after:.1f} after.")
print(f"Barrier of the loss: {display.loss_barrier_before:.2f} nats before alignment, {display.loss_barrier_after:.2f} after.")
