"""
Fuse recurrent networks of different sizes
==========================================

A recurrent network reads a sequence step by step and keeps a state. Its
neurons can be renamed like those of any other network, but they stand on both
sides of the recurrent weights, which makes matching them a harder problem: a
Gromov-Wasserstein transport in place of a linear one. Here two GRUs with
states of 48 and of 64 neurons become one.
"""

# %%
# The parents
# -----------
# The digits' 8 x 8 pixels are read as sequences: 8 steps of 8 values, like the
# readings of a row of sensors. The two networks differ in their sizes, their
# initialisation and the order in which they saw the training rows. All is
# repeated with three draws of the seeds.

import matplotlib.pyplot as plt
import numpy as np
import torch

from sklearn_wbfuse import FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_recurrent
from sklearn_wbfuse.exceptions import WidthError
from sklearn_wbfuse.inspection import CouplingDisplay

torch.set_num_threads(1)  # networks this small are faster on one
digits = load_digits()
X_train, X_test = (rows.view(-1, 8, 8) for rows in (digits.X_train, digits.X_test))


def train(hidden, seed):
    return train_recurrent(X_train, digits.y_train, "gru", hidden, seed)


draws = [[train(48, seed), train(64, seed + 1)] for seed in (0, 10, 20)]

# %%
# Fusing
# ------
# Plain averaging has no answer to networks of different sizes:

try:
    VanillaAveraging().fit(draws[0])
except WidthError as error:
    print(error)

# %%
# Couplings are transport plans and need not be permutations, so fusion has
# one. ``alpha_h`` is the weight of the recurrent tensors in the energy; with 0
# they have no say in which neurons correspond, and are merely carried along.
# The other values are there to show what the parameter does; none is chosen by
# its accuracy. It is a parameter of the pure barycenter, ``correction=None``, for
# which no row of data is looked at: :class:`~sklearn_wbfuse.FusionInput` has them
# for their shape, and finds the neuron groups once for all fits. The defaults
# then correct on these rows, without labels.

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
# Accuracy on rows that no network has seen, in percent, for each draw. The
# ensemble, the mean of the parents' softmax outputs, runs both networks; the
# fused network has the size of the larger one.


@torch.no_grad()
def accuracy(*models):
    mean = sum(model(X_test).softmax(1) for model in models)
    return 100 * float((mean.argmax(1) == digits.y_test).float().mean())


small, large = ([accuracy(parents[i]) for parents in draws] for i in (0, 1))
ensemble = [accuracy(*parents) for parents in draws]
fused = np.array([[accuracy(fusion.fused_model_) for fusion in own] for own in fusions])

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
# What corresponds
# ----------------
# Left, the coupling of the smaller parent in the first draw: of which of its
# neurons each neuron of the fused network is made, and with which sign (a
# neuron of a GRU can be negated along with all that reads it). The rows are
# sorted by their largest entry. A row holds 1/64 of the mass and a column 1/48,
# so each neuron of the parent has to go into more than one row.
#
# In the middle, the networks run: how the states of neurons of both parents
# correlate over all steps of the test rows, for all pairs, and for those that
# the couplings bring together (turned round where the sign is -1). The
# matching, which has seen weights alone, pairs neurons that act alike.
#
# Right, accuracy over ``alpha_h``. Lines are means of the three draws, the band
# spans them.

fusion = fusions[0][alphas.index(default)]
plan, plan_of_larger = (own["rnn.l0"] for own in fusion.couplings_)
pairs = 64 * plan.T @ plan_of_larger  # which neurons of the two parents meet in a fused neuron


@torch.no_grad()
def states(model):
    return model.rnn(X_test)[0].flatten(0, 1).T.numpy()


correlation = np.corrcoef(states(draws[0][0]), states(draws[0][1]))[:48, 48:]

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.4, 3.5), layout="constrained", width_ratios=(1.1, 1, 1))
CouplingDisplay.from_estimator(fusion, model=0, ax=left)
left.set(title="Coupling", xlabel="Neuron of the smaller parent")

bins = np.linspace(-1, 1, 26)
turned = np.where(pairs < 0, -correlation, correlation)
middle.hist(correlation.ravel(), bins, density=True, color="0.75", label="all pairs")
middle.hist(
    turned.ravel(),
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
