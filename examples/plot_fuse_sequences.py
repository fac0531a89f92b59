"""
Fuse recurrent networks with different widths
=============================================

A recurrent network reads a sequence step by step and keeps a state. Its
hidden units can be permuted like the neurons of any other network, but they are on
both axes of the recurrent weights. Matching them is therefore a harder problem:
Gromov-Wasserstein instead of linear transport. This example fuses two GRUs with 48
and 64 hidden units into one.
"""

# %%
# The parents
# -----------
# The networks read the 8 x 8 pixels of the digits as sequences: 8 steps of 8 values,
# like the readings of an array of sensors. The two networks differ in their widths,
# their initial weights and the order in which they saw the training rows. The
# experiment is repeated with three draws of the seeds.

import matplotlib.pyplot as plt
import numpy as np
import torch

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_recurrent
from sklearn_wbfuse.exceptions import WidthError
from sklearn_wbfuse.inspection import CouplingDisplay

torch.set_num_threads(1)  # small networks run faster on one thread
digits = load_digits()
X_train, X_test = (rows.view(-1, 8, 8) for rows in (digits.X_train, digits.X_test))


def train(hidden, seed):
    return train_recurrent(X_train, digits.y_train, "gru", hidden, seed)


draws = [[train(48, seed), train(64, seed + 1)] for seed in (0, 10, 20)]

# %%
# Fusion
# ------
# Plain averaging cannot handle networks with different widths:

try:
    VanillaAveraging().fit(draws[0])
except WidthError as error:
    print(error)

# %%
# Fusion can, since couplings are transport plans and need not be permutations.
# ``alpha_h`` is the weight of the recurrent tensors in the energy. With 0, they do not
# influence which neurons correspond and are only carried along. The other values
# illustrate the effect of the parameter; none is chosen by its accuracy. These fits
# compute the pure barycenter (``correction=None``) and use no data:
# :class:`~sklearn_wbfuse.FusionInput` only provides the shape of the inputs, and lets
# all fits share one discovery of the neuron groups. The defaults, in contrast, correct
# on these rows, without labels.

default = WassersteinFusion().alpha_h
alphas = sorted({0, 0.1, 1, 10, default})
fusions, corrected = [], []
for parents in draws:
    models = FusionInput(parents, X_train)
    fusions.append([WassersteinFusion(alpha_h=alpha, correction=None, random_state=0).fit(models) for alpha in alphas])
    corrected.append(WassersteinFusion(random_state=0).fit(models))
print(fusions[0][0].graph_)
print(corrected[0].agreement_)

# %%
# The table shows the accuracy on unseen rows in percent, for each draw. The
# ensemble (the mean of the parents' softmax outputs) runs both networks; the
# fused network has the widths of the larger one.


@torch.no_grad()
def accuracy(*models):
    mean = sum(model(X_test).softmax(1) for model in models)
    return 100 * float((mean.argmax(1) == digits.y_test).float().mean())


small, large = ([accuracy(parents[i]) for parents in draws] for i in (0, 1))
ensemble = [accuracy(*parents) for parents in draws]
fused = np.array([[accuracy(fusion.fused_model_) for fusion in draw] for draw in fusions])

for name, values in {
    "parent, 48 neurons": small,
    "parent, 64 neurons": large,
    "ensemble of both": ensemble,
    "fused, alpha_h=0": fused[:, alphas.index(0)],
    "fused, pure barycenter": fused[:, alphas.index(default)],
    "fused, the defaults": [accuracy(fusion.fused_model_) for fusion in corrected],
}.items():
    print(f"{name:23}" + "".join(f"{value:7.1f}" for value in values) + f"   mean{np.mean(values):7.1f}")

# %%
# Which neurons correspond
# ------------------------
# Left: the coupling of the smaller parent in the first draw. It shows which of its
# hidden units make up each unit of the fused network, and with which sign (a hidden
# unit of a GRU can be negated together with everything that reads it). The rows are
# sorted by their largest entry. A row holds 1/64 of the mass and a column 1/48,
# so each unit of the parent contributes to more than one row.
#
# Middle: the correlation between the states of two hidden units, one of each parent,
# over all steps of the test rows. It is shown for all pairs, and for the coupled
# pairs (negated where the sign is -1). The matching used only weights, but it pairs
# units that behave similarly.
#
# Right: the accuracy as a function of ``alpha_h``. Lines are means over the three
# draws, and the band shows their range.

fusion = fusions[0][alphas.index(default)]
plan, plan_of_larger = (couplings["rnn.l0"] for couplings in fusion.couplings_)
pairs = 64 * plan.T @ plan_of_larger  # pairs of the parents' neurons that share a fused neuron


@torch.no_grad()
def states(model):
    return model.rnn(X_test)[0].flatten(0, 1).T.numpy()


correlation = np.corrcoef(states(draws[0][0]), states(draws[0][1]))[:48, 48:]

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.4, 3.5), layout="constrained", width_ratios=(1.1, 1, 1))
CouplingDisplay.from_estimator(fusion, model=0, ax=left)
left.set(title="Coupling", xlabel="Neuron of the smaller parent")

bins = np.linspace(-1, 1, 26)
signed = np.where(pairs < 0, -correlation, correlation)
middle.hist(correlation.ravel(), bins, density=True, color="0.75", label="all pairs")
middle.hist(
    signed.ravel(),
    bins,
    weights=np.abs(pairs).ravel(),
    density=True,
    histtype="step",
    color="#D55E00",
    linewidth=2,
    label="coupled",
)
middle.set(title="States of two neurons, one per parent", xlabel="Correlation", ylabel="Density")
middle.legend(frameon=False, loc="upper left")

right.axhline(np.mean(ensemble), color="black", linestyle="--", label="ensemble")
right.axhline(np.mean([small, large]), color="#009E73", label="one parent, on average")
right.fill_between(alphas, fused.min(0), fused.max(0), color="#0072B2", alpha=0.15, linewidth=0)
right.plot(alphas, fused.mean(0), "o-", color="#0072B2", label="fused, no correction")
right.set_xscale("symlog", linthresh=0.1)
right.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
right.set_xticks([], minor=True)
right.set(title="Accuracy on test rows (%)", xlabel="Weight of recurrent tensors, alpha_h")
right.legend(frameon=False, loc="lower right")
for ax in (middle, right):
    ax.spines[["top", "right"]].set_visible(False)
