"""
Plot the loss in the plane through three networks
=================================================

Two networks with different seeds lie in two valleys of the loss. Yet the function of
one of them is also found in the valley of the other, once its neurons are in the
other's order. The figure, like Figure 1 of the paper, is a map of the loss in the
plane through these three networks.
"""

# %%
# Two parents and a fusion
# ------------------------
# The parents are perceptrons with widths 64-64-32-10, trained on scikit-learn's digits.
# They are fused without data, and ``correction=None`` keeps the fused network in the
# plane, at the mean of the aligned parents.

import torch

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp
from sklearn_wbfuse.inspection import LossPlaneDisplay

torch.set_num_threads(1)  # small networks run faster on one thread
digits = load_digits()
parents = [train_mlp(digits.X_train, digits.y_train, (64, 64, 32, 10), seed) for seed in (0, 1)]
fusion = WassersteinFusion(correction=None).fit(parents)

# %%
# The map
# -------
# Model 1 and model 2 are the parents as they were trained. Aligned model 2
# computes the same function as model 2, with its neurons in model 1's order and
# at model 1's scales. Distances in the figure are distances between
# parameters. Each point of the grid is a network, evaluated on the test rows.
#
# Between model 1 and model 2 there is a ridge, with the plain average halfway
# along the line. Between model 1 and aligned model 2 there is only a low saddle; the
# mean of the two is the fused network.

display = LossPlaneDisplay.from_estimator(fusion, parents, digits.X_test, digits.y_test)

# %%
for name, value in display.point_values.items():
    print(f"{name:16} at ({display.points[name][0]:5.2f}, {display.points[name][1]:5.2f}): loss {value:.3f}")

# %%
# The same plane, coloured by the error:

LossPlaneDisplay.from_estimator(fusion, parents, digits.X_test, digits.y_test, metric="error")
