"""
Choose the regularisation by cross-validation
=============================================

A fusion is a scikit-learn estimator, so its parameters can be searched.
:class:`~sklearn_wbfuse.FusionInput` carries the parents along with rows of
data: it is split by rows, and every split fuses the same parents.
"""

# %%
# The search
# ----------
# Weights alone decide how neurons are matched, so fitting does not look at the
# rows: those held out by each fold score the fused network. The rows here are
# the validation rows, which the parents have not seen.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_wbfuse import FusionInput, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_mlp

torch.set_num_threads(1)  # networks this small are faster on one
digits = load_digits()
parents = [train_mlp(digits.X_train, digits.y_train, (64, 64, 32, 10), seed) for seed in (0, 1)]

grid = {"reg": [0, 0.001, 0.003, 0.01, 0.02, 0.04]}
search = GridSearchCV(WassersteinFusion(), grid, cv=StratifiedKFold(4, shuffle=True, random_state=0))
search.fit(FusionInput(parents, digits.X_val), digits.y_val.numpy())
print(f"Best: {search.best_params_}, accuracy {search.best_score_:.1%} over the folds")
print(f"Accuracy on the test rows: {search.score(digits.X_test, digits.y_test.numpy()):.1%}")

# %%
# Score over regularisation
# -------------------------
# ``reg`` is relative to the largest (centred) cost; at 0 the couplings are exact. Bars
# are the standard errors over the folds. The same networks are scored on other
# rows in each fold, so differences within a bar mean little: on these networks
# a little regularisation neither helps nor harms. Far more does harm (try
# 0.1): every target neuron becomes the mean of all its sources.

results = search.cv_results_
mean, deviation = 100 * results["mean_test_score"], 100 * results["std_test_score"]
figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
ax.errorbar(grid["reg"], mean, deviation / np.sqrt(search.n_splits_), fmt="o-", color="#0072B2", capsize=3)
ax.set_xscale("symlog", linthresh=0.001, linscale=0.5)
ax.set_xticks(grid["reg"], [f"{reg:g}" for reg in grid["reg"]])
ax.set_xticks([], minor=True)
ax.set(xlabel="Entropic regularisation, reg (0: exact)", ylabel="Accuracy over the folds (%)")
ax.spines[["top", "right"]].set_visible(False)
