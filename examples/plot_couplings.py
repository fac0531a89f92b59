"""
Look at couplings
=================

A fusion couples the neurons of each parent with those of the fused network.
The couplings say which neurons went where, and how much of a fused neuron each
of them makes up.
"""

# %%
# Three fusions
# -------------
# Two perceptrons 64-64-32-10, trained on scikit-learn's digits from different
# seeds, are fused into one of their own widths: once with exact couplings, once
# with blurred ones, ``reg=0.02``. A third perceptron has twice their hidden
# widths; fused with the first, the target's widths lie between the two. The
# couplings are the subject, so the corrections that would follow are left out.

import matplotlib.pyplot as plt
import torch

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp
from sklearn_wbfuse.inspection import CouplingDisplay

torch.set_num_threads(1)  # networks this small are faster on one
digits = load_digits()
first, second = (train_mlp(digits.X_train, digits.y_train, (64, 64, 32, 10), seed) for seed in (0, 1))
wide = train_mlp(digits.X_train, digits.y_train, (64, 128, 64, 10), 2)

fusions = {
    "exact": WassersteinFusion(correction=None).fit([first, second]),
    "blurred, reg=0.02": WassersteinFusion(reg=0.02, correction=None).fit([first, second]),
    "widths between": WassersteinFusion(target_widths=[96, 48], correction=None, random_state=0).fit([wide, first]),
}
print(fusions["widths between"].graph_)

# %%
# Their couplings
# ---------------
# Rows are neurons of the fused network, sorted by the parent's neuron that has
# the largest share in them; columns are the neurons of the second network of
# each pair, in the first hidden layer. An exact coupling of equal widths is a
# permutation: every neuron stands in one place, and the sorted rows show a
# diagonal. With regularisation, mass spreads over similar neurons. The 64
# neurons of the narrow network fill 96 neurons of the target, so each of them
# goes into one and a half: fused neurons are whole copies or mixtures of two.

figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
for ax, (name, fusion) in zip(axes, fusions.items(), strict=True):
    CouplingDisplay.from_estimator(fusion, "layers.0", ax=ax, colorbar=ax is axes[-1])
    ax.set_title(name)

# %%
# The same as numbers: how many of the parent's neurons have at least a tenth of
# a fused neuron, on average.

for name, fusion in fusions.items():
    shares = CouplingDisplay(fusion.couplings_[1]["layers.0"]).shares
    print(f"{name:20}{(shares >= 0.1).sum(1).mean():5.2f}")
