"""
The loss between networks, seen from above
==========================================

Two networks of different seeds lie in two valleys of the loss. Yet what one of
them computes can also be found in the valley of the other: its neurons only
have to stand in the other's order. The picture, as in Figure 1 of the paper,
is a map of the loss in the plane through the three.
"""

# %%
# Two parents and a fusion
# ------------------------
# Perceptrons 64-64-32-10 on scikit-learn's digits. No data is looked at to
# fuse them, and ``correction=None`` keeps the fused network in the plane, at the
# mean of the aligned parents.

import torch

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp
from sklearn_wbfuse.inspection import LossPlaneDisplay

torch.set_num_threads(1)  # networks this small are faster on one
digits = load_digits()
parents = [train_mlp(digits.X_train, digits.y_train, (64, 64, 32, 10), seed) for seed in (0, 1)]
fusion = WassersteinFusion(correction=None).fit(parents)

# %%
# The map
# -------
# Model 1 and model 2 are the parents as they were trained. Aligned model 2
# computes what model 2 computes, with its neurons in model 1's order and
# brought to model 1's scales. Distances in the picture are distances between
# parameters. Each point of the grid is a network, evaluated on the test rows.
#
# Between model 1 and model 2 there is a ridge, on which the plain average stands,
# halfway. Between model 1 and aligned model 2 there is only a low saddle; the
# mean of the two is the fused network.

display = LossPlaneDisplay.from_estimator(fusion, parents, digits.X_test, digits.y_test)

# %%
for name, value in display.point_values.items():
    print(f"{name:16} at ({display.points[name][0]:5.2f}, {display.points[name][1]:5.2f}): loss {value:.3f}")

# %%
# The same plane, by the error:

LossPlaneDisplay.from_estimator(fusion, parents, digits.X_test, digits.y_test, metric="error")
