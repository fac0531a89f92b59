"""
Choose parameters by cross-validation
=====================================

A fusion is a scikit-learn estimator, so its parameters can be searched.
:class:`~sklearn_wbfuse.FusionInput` carries the parents along with rows of
data: it is split by rows, and every split fuses the same parents.
"""

# %%
# The parents
# -----------
# Two LSTMs with states of 32 neurons, which read the digits' 8 x 8 pixels as
# sequences: 8 steps of 8 values. They differ in their initialisation and in the
# order in which they saw the training rows.

import torch
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_wbfuse import FusionClassifier, FusionInput, VanillaAveraging, WassersteinFusion
from sklearn_wbfuse.datasets import load_digits, train_recurrent
from sklearn_wbfuse.inspection import GridSearchDisplay

torch.set_num_threads(1)  # networks this small are faster on one
digits = load_digits()
X_train, X_val, X_test = (rows.view(-1, 8, 8) for rows in (digits.X_train, digits.X_val, digits.X_test))
parents = [train_recurrent(X_train, digits.y_train, "lstm", 32, seed) for seed in (0, 1)]

# %%
# The search
# ----------
# ``reg`` blurs the couplings; at 0 they are exact. ``alpha_h`` is the weight of
# the recurrent tensors in the energy; at 0 they have no say in which neurons
# correspond. A second grid holds the plain average, which has neither. Of each
# fold, the rows that stay serve the fusion, without labels, and those held out
# score the fused network. The rows are the validation rows, which the parents have
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
# The plain average stands above the picture, since it has no place in the grid.
# Colours span at least four standard errors over the folds, so that cells that
# differ by noise look alike.

display = GridSearchDisplay.from_estimator(search)

# %%
# All cells are far above the plain average, and lie within about two points of each
# other: on rows the correction evens out what the alignment leaves, and the frame
# stands where it does partly by chance. Searches matter more where a fusion is not
# corrected, ``correction=None``, or has no rows.

print(f"Mean standard error over the folds: {display.errors.mean():.1%}")

# %%
# With a line in place of the heat map, bars show these standard errors, and
# each point is the best over the other parameter:

GridSearchDisplay.from_estimator(search, "fusion__alpha_h")

# %%
# The best score of a search is optimistic, since it was picked among many. Rows
# that the search has not seen tell what it is worth. The defaults stand beside
# it without data, and on the validation rows, of whose labels they see nothing.

for name, estimator in {
    "plain average": FusionClassifier(VanillaAveraging()).fit(parents),
    "fused, best of the search": search,
    "fused, the defaults": FusionClassifier(WassersteinFusion(random_state=0)).fit(parents),
    "the defaults on rows": FusionClassifier(WassersteinFusion(random_state=0)).fit(FusionInput(parents, X_val)),
    "parent, seed 0": FusionClassifier().fit(parents[:1]),
    "parent, seed 1": FusionClassifier().fit(parents[1:]),
}.items():
    print(f"{name:26}{estimator.score(X_test, digits.y_test):6.1%}")
