"""scikit-learn's own checks of estimators.

``check_estimator`` leaves out all of them for estimators whose input is not a two-dimensional array, so those that apply are
called here one by one: some on the estimators as they are, some on classifiers and regressors that bring their own models and
so take plain rows. Every check that scikit-learn has is on one of the lists or left out for a reason.
"""

import inspect

import numpy as np
import pytest
import sklearn
import torch
from sklearn.utils import estimator_checks
from torch import nn

import sklearn_wbfuse
from sklearn_wbfuse import FusionClassifier, FusionInput, FusionRegressor, WassersteinFusion
from sklearn_wbfuse.base import ESTIMATORS

AS_THEY_ARE = """
check_do_not_raise_errors_in_init_or_set_params check_estimator_cloneable check_estimator_repr check_estimator_tags_renamed
check_estimators_unfitted check_get_params_invariance check_mixin_order check_no_attributes_set_in_init
check_param_validation check_parameters_default_constructible check_set_params check_transformers_unfitted
check_valid_tag_types
""".split()

ON_ROWS = """
check_classifiers_regression_target check_decision_proba_consistency check_dict_unchanged check_dont_overwrite_parameters
check_estimators_fit_returns_self check_estimators_overwrite_params check_f_contiguous_array_estimator check_fit2d_1sample
check_fit_check_is_fitted check_fit_idempotent check_fit_score_takes_y check_inplace_ensure_writeable
check_methods_sample_order_invariance check_methods_subset_invariance check_n_features_in_after_fitting
check_non_transformer_estimators_n_iter check_pipeline_consistency check_positive_only_tag_during_fit
check_readonly_memmap_input check_regressors_int check_regressors_no_decision_function check_supervised_y_no_nan
""".split()

LEFT_OUT = {
    "fit has no sample_weight: fusions do not learn from rows": """
        check_all_zero_sample_weights_error check_classifiers_one_label_sample_weights
        check_sample_weight_equivalence_on_dense_data check_sample_weight_equivalence_on_sparse_data
        check_sample_weights_list check_sample_weights_not_an_array check_sample_weights_not_overwritten
        check_sample_weights_pandas_series check_sample_weights_shape""",
    "there is no class_weight": """
        check_class_weight_balanced_classifiers check_class_weight_balanced_linear_classifier
        check_class_weight_classifiers""",
    "needs a model that learns from y": """
        check_classifiers_classes check_classifiers_one_label check_classifiers_predictions check_classifiers_train
        check_regressors_train check_supervised_y_2d check_requires_y_none""",
    "rows have any shape and type that the networks take: nothing is counted, named or validated before them": """
        check_complex_data check_dataframe_column_names_consistency check_dtype_object check_estimators_dtypes
        check_estimators_empty_data_messages check_estimators_nan_inf check_estimators_partial_fit_n_features
        check_fit1d check_fit2d_1feature check_fit2d_predict1d check_n_features_in check_nonsquare_error
        check_estimators_pickle""",
    "torch takes no such containers": """
        check_array_api_input check_array_api_input_and_values check_array_api_mixed_inputs
        check_array_api_same_namespace check_classifier_data_not_an_array check_estimator_sparse_array
        check_estimator_sparse_matrix check_estimator_sparse_tag check_estimators_data_not_an_array
        check_regressor_data_not_an_array""",
    "one label or several targets per row, as the network has outputs; multilabel is not built": """
        check_classifier_multioutput check_classifier_not_supporting_multiclass
        check_classifiers_multilabel_output_format_decision_function check_classifiers_multilabel_output_format_predict
        check_classifiers_multilabel_output_format_predict_proba check_classifiers_multilabel_representation_invariance
        check_regressor_multioutput""",
    "transform takes and gives lists of models, not arrays": """
        check_get_feature_names_out_error check_global_output_transform_pandas check_global_set_output_transform_polars
        check_set_output_transform check_set_output_transform_pandas check_set_output_transform_polars
        check_transformer_data_not_an_array check_transformer_general check_transformer_get_feature_names_out
        check_transformer_get_feature_names_out_pandas check_transformer_n_iter check_transformer_preserve_dtypes
        check_transformers_unfitted_stateless""",
    "for clusterers, outlier detectors, linear models and models of positive data": """
        check_clusterer_compute_labels_predict check_clustering check_fit_non_negative check_outlier_contamination
        check_outlier_corruption check_outliers_fit_predict check_outliers_train check_sparsify_coefficients""",
    "calls the others": "check_estimator",
}


for name in sklearn_wbfuse.__all__:
    getattr(sklearn_wbfuse, name)  # imports what defines it
FITTED = [
    estimator
    for estimator in ESTIMATORS.values()
    if estimator.__module__.startswith("sklearn_wbfuse.") and hasattr(estimator, "fit") and not inspect.isabstract(estimator)
]
"""Every estimator of the package that is fitted: fusions and predictors."""


def networks(inputs, outputs):
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Linear(inputs, 4), nn.ReLU(), nn.Linear(4, outputs)).double())
    return made


class RowsClassifier(FusionClassifier):
    def fit(self, X, y=None):
        X = np.asarray(X)
        return super().fit(FusionInput(networks(X.shape[1], len(np.unique(y))), X), y)


class RowsRegressor(FusionRegressor):
    def fit(self, X, y=None):
        X = np.asarray(X)
        return super().fit(FusionInput(networks(X.shape[1], 1), X), y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", AS_THEY_ARE)
@pytest.mark.parametrize("estimator", FITTED)
def test_as_they_are(estimator, check):
    getattr(estimator_checks, check)(estimator.__name__, estimator())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [(RowsClassifier, check) for check in ON_ROWS if "regressors" not in check]
    + [(RowsRegressor, check) for check in ON_ROWS if "classifiers" not in check],
)
def test_on_rows(estimator, check):
    """With a random_state, which draws the rows that a correction is fitted on: two fits are the same."""
    getattr(estimator_checks, check)(estimator.__name__, estimator(WassersteinFusion(random_state=0)))


def test_every_check_is_called_or_left_out_for_a_reason():
    listed = [*AS_THEY_ARE, *ON_ROWS, *(name for names in LEFT_OUT.values() for name in names.split())]
    assert len(listed) == len(set(listed))
    if not sklearn.__version__.startswith("1.9."):
        pytest.skip("other versions have other checks")
    there = {n for n, f in vars(estimator_checks).items() if n.startswith("check_") and inspect.isfunction(f)}
    own = {n for n in there if getattr(estimator_checks, n).__module__ == estimator_checks.__name__}
    assert own == set(listed)
