"""
Choose parameters by cross-validation
=====================================

A fusion is a scikit-learn estimator, so you can search over its parameters.
:class:`~sklearn_wbfuse.FusionInput` carries the parents along with rows of
data. Cross-validation splits the rows; every split fuses the same parents.
"""

# %%
# The parents
# -----------
# The parents are two LSTMs with 32 hidden units, which read the 8 x 8 pixels of the
# digits as sequences: 8 steps of 8 values. They differ in their initial weights and in
# the order in which they saw the training rows.

import torch
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_wbfuse import FusionClassifier, FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_recurrent
from sklearn_wbfuse.inspection import GridSearchDisplay

torch.set_num_threads(1)  # small networks run faster on one thread
digits = load_digits()
X_train, X_val, X_test = (rows.view(-1, 8, 8) for rows in (digits.X_train, digits.X_val, digits.X_test))
parents = [train_recurrent(X_train, digits.y_train, "lstm", 32, seed) for seed in (0, 1)]

# %%
# The search
# ----------
# ``reg`` blurs the couplings; at 0 they are exact. ``alpha_h`` is the weight of
# the recurrent tensors in the energy; at 0 they do not influence which neurons
# correspond. A second grid holds the plain average, which has neither parameter. In
# each fold, the fusion uses the training part, without labels, and the held-out part
# scores the fused network. The rows are the validation rows, which the parents have
# not seen.

grid = [
    {
        "fusion": [WassersteinFusion(random_state=0)],
        "fusion__reg": [0, 0.003, 0.01, 0.03],
        "fusion__alpha_h": [0, 0.3, 1, 3],
    },
    {"fusion": [VanillaAveraging()]},
]
folds = StratifiedKFold(4, shuffle=True, random_state=0)
search = GridSearchCV(FusionClassifier(), grid, cv=folds).fit(FusionInput(parents, X_val), digits.y_val)
print("Best:", {name: value for name, value in search.best_params_.items() if name != "fusion"})

# %%
# Accuracy over both parameters
# -----------------------------
# The title shows the plain average, since it does not fit into the grid. The colours
# span at least four standard errors over the folds, so that cells that differ only by
# noise look alike.

display = GridSearchDisplay.from_estimator(search)

# %%
# All cells are far above the plain average, and within about two points of each other.
# On data, the correction evens out the differences between alignments, so the position
# of the best cell, which is framed, is partly chance. A search matters more if a fusion
# is not corrected (``correction=None``) or has no data.

print(f"Mean standard error over the folds: {display.errors.mean():.1%}")

# %%
# As a line plot over one parameter, each point is the best over the other parameter, and
# error bars show these standard errors:

GridSearchDisplay.from_estimator(search, "fusion__alpha_h")

# %%
# The best score of a search is optimistic, since it was selected among many. Rows that
# the search has not seen give an unbiased estimate. For comparison, the defaults are
# fitted without data, and on the validation rows without their labels.

for name, estimator in {
    "plain average": FusionClassifier(VanillaAveraging()).fit(parents),
    "fused, best of the search": search,
    "fused, the defaults": FusionClassifier(WassersteinFusion(random_state=0)).fit(parents),
    "the defaults on rows": FusionClassifier(WassersteinFusion(random_state=0)).fit(FusionInput(parents, X_val)),
    "parent, seed 0": FusionClassifier().fit(parents[:1]),
    "parent, seed 1": FusionClassifier().fit(parents[1:]),
}.items():
    print(f"{name:26}{estimator.score(X_test, digits.y_test):6.1%}")
