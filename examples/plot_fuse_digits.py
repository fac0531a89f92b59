"""
Fuse two networks with different seeds
======================================

Two networks with the same architecture, trained on the same rows with different
seeds, compute nearly the same function. Yet the average of their parameters is
a poor network, because neurons at the same position are unrelated. Fusion matches
the neurons, averages those that correspond, and corrects the result to match what
the parents compute.
"""

# %%
# The parents
# -----------
# The parents are two perceptrons with widths 64-64-32-10, trained on scikit-learn's
# digits. They have similar accuracies, but different initial weights, and they saw the
# rows in a different order.

import torch

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp
from sklearn_wbfuse.inspection import InterpolationDisplay, ProbeDisplay

torch.set_num_threads(1)  # small networks run faster on one thread
digits = load_digits()
parents = [train_mlp(digits.X_train, digits.y_train, (64, 64, 32, 10), seed) for seed in (0, 1)]

# %%
# Fusion
# ------
# Neither estimator uses any data here, and nothing is trained. The fused network
# has the widths and the computational cost of one parent.

average = VanillaAveraging().fit(parents)
fusion = WassersteinFusion(random_state=0).fit(parents)
print(fusion.graph_)

# %%
# ``agreement_`` measures how often the fused network makes the same prediction as
# its parents, on held-out inputs of the correction. These inputs are synthetic. For a
# network that begins with a linear layer, they are noise with a covariance derived
# from the parents' first layers.

print(fusion.agreement_)
ProbeDisplay.from_models(parents)

# %%
# Unlabelled data gives better results. ``correction=None`` switches the correction
# off:

on_rows = WassersteinFusion(random_state=0).fit(FusionInput(parents, digits.X_train))
barycenter = WassersteinFusion(correction=None).fit(parents)

# %%
# Compare the accuracy on unseen rows with that of the ensemble (the mean of the
# parents' softmax outputs), which costs twice as much to run:


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
# ``transform`` rearranges both parents into the neuron order of the fused network.
# They still compute the same functions, but the straight line between them no longer
# crosses a high barrier, neither in the loss (the cross-entropy on the test rows) nor
# in the error. The midpoint of the dashed line is the plain average; the midpoint of
# the solid line is the fused network before its correction.

display = InterpolationDisplay.from_estimator(fusion, parents, digits.X_test, digits.y_test, metric=("loss", "error"))

# %%
print(f"Barrier of the error: {display.barrier_before:.1f} points before alignment, {display.barrier_after:.1f} after.")
print(f"Barrier of the loss: {display.loss_barrier_before:.2f} nats before alignment, {display.loss_barrier_after:.2f} after.")
