"""
Visualise couplings
===================

A fusion couples the neurons of each parent with those of the fused network.
The couplings show which neurons correspond, and how much each neuron of a
parent contributes to a fused neuron.
"""

# %%
# Three fusions
# -------------
# Two perceptrons with widths 64-64-32-10, trained on scikit-learn's digits with
# different seeds, are fused into one with the same widths: once with exact
# couplings, and once with blurred ones (``reg=0.02``). A third perceptron has
# twice their hidden widths. It is fused with the first into a target whose widths
# lie in between. Corrections are switched off, since this example is about
# couplings.

import matplotlib.pyplot as plt
import torch

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp
from sklearn_wbfuse.inspection import CouplingDisplay

torch.set_num_threads(1)  # small networks run faster on one thread
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
# The figure shows the first hidden layer. Rows are neurons of the fused network,
# sorted by the parent's neuron with the largest share; columns are the neurons of
# the second network of each pair. An exact coupling of equal widths is a
# permutation, so the sorted rows show a diagonal. With regularisation, mass
# spreads over similar neurons. In the last plot, the 64 neurons of the narrow
# network fill 96 neurons of the target. Each contributes to one and a half
# target neurons, so fused neurons are either copies or mixtures of two.

figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
for ax, (name, fusion) in zip(axes, fusions.items(), strict=True):
    CouplingDisplay.from_estimator(fusion, "layers.0", ax=ax, colorbar=ax is axes[-1])
    ax.set_title(name)

# %%
# The same as numbers: the average number of the parent's neurons that contribute at
# least a tenth of a fused neuron.

for name, fusion in fusions.items():
    shares = CouplingDisplay(fusion.couplings_[1]["layers.0"]).shares
    print(f"{name:20}{(shares >= 0.1).sum(1).mean():5.2f}")
