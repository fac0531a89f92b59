"""Roles and estimators of users' own: what they get from the base classes, and that no role of ours misses its suite."""

import importlib
import inspect
import pickle
import pkgutil
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance.adapters import AdapterConformance, prepared
from conformance.aligners import AlignerConformance
from conformance.averagers import AveragerConformance
from conformance.corrections import CorrectionConformance
from conformance.fusers import FuserConformance, assert_same, family, values
from extending import PAGE, ByMagnitude, Centre, LayerByLayer, LayerwiseFusion, MagnitudeFusion
from networks import MLP, disguised, randomised
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import sklearn_wbfuse
from sklearn_wbfuse import FusionInput, VanillaAveraging, load
from sklearn_wbfuse.alignment import Aligner, Alignment, Identity
from sklearn_wbfuse.averaging import Averager, WeightedMean
from sklearn_wbfuse.base import ESTIMATORS
from sklearn_wbfuse.correction import Correction
from sklearn_wbfuse.exceptions import FusionError, WidthError
from sklearn_wbfuse.fusion import BaseFusion, Roles
from sklearn_wbfuse.layers.registry import RULES
from sklearn_wbfuse.network.couplings import Coupling, Permutation

SUITES = {
    Aligner: AlignerConformance,
    Averager: AveragerConformance,
    Correction: CorrectionConformance,
    BaseFusion: FuserConformance,
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The page is run as doctests too, and defines the same names anew."""
    for cls in (Centre, LayerwiseFusion, MagnitudeFusion):
        monkeypatch.setitem(ESTIMATORS, cls.__name__, cls)


def below(cls):
    return {c for sub in cls.__subclasses__() for c in (sub, *below(sub))}


@pytest.fixture(scope="module")
def everything():
    """All modules of the package, and all test files of a suite, are imported."""
    for module in pkgutil.walk_packages(sklearn_wbfuse.__path__, "sklearn_wbfuse."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        has_suite = "Conformance" in path.read_text() or path.stem == "test_operations"
        if has_suite and path.stem not in sys.modules:
            sys.path.insert(0, str(path.parent))  # as pytest does
            importlib.import_module(path.stem)


def uncovered(role):
    """The classes of a role in the package that no subclass of its suite makes."""
    covered = {type(suite().make()) for suite in below(SUITES[role])}
    ours = {c for c in below(role) if c.__module__.startswith("sklearn_wbfuse.") and not inspect.isabstract(c)}
    assert ours
    return sorted(c.__name__ for c in ours - covered)


@pytest.mark.parametrize("role", SUITES, ids=lambda role: role.__name__)
def test_every_class_of_a_role_has_the_conformance_suite(everything, role):
    assert not uncovered(role), f"no subclass of {SUITES[role].__name__} makes these"


def traced_operations(device):
    """The operations of each network of the survey, and of each case of the suite of adapters."""
    survey = sys.modules["test_operations"]
    for suite in below(AdapterConformance):
        for case in suite.cases.values():
            yield prepared(case, device)[2].operations
    for names in survey.CHAINS:
        yield survey.discovered(names).operations


@pytest.mark.filterwarnings("ignore::sklearn_wbfuse.exceptions.FusionWarning")
def test_every_rule_stands_in_a_network_of_the_suite_of_adapters(everything, device):
    """Rules made by one function are one rule; each operation that they are registered for is tested beside the table."""
    left = {rule.__code__: rule.__qualname__ for rule in RULES.values() if rule.__module__.startswith("sklearn_wbfuse.")}
    assert len(left) > 60
    for operations in traced_operations(device):
        for operation in operations:
            left.pop(getattr(RULES.get(operation.name), "__code__", None), None)
        if not left:
            return
    raise AssertionError(f"no case of AdapterConformance and no row of the survey runs {sorted(left.values())}")


class TestWhatIsNotCovered:
    """A class or rule without a suite is found: it stands in this file as if it were in the package."""

    @pytest.mark.parametrize("role", SUITES, ids=lambda role: role.__name__)
    def test_class(self, everything, role):
        methods = {name: lambda self, *arguments: None for name in role.__abstractmethods__}
        name = f"Lonely{role.__name__}"
        lonely = type(name, (role,), {"__module__": "sklearn_wbfuse.lonely", **methods})
        assert uncovered(role) == [name]
        lonely.__module__ = __name__  # is no class of the package again
        ESTIMATORS.pop(name, None)

    def test_rule(self, everything, device, monkeypatch):
        def lonely(constraints, x):
            return x

        lonely.__module__ = "sklearn_wbfuse.layers.lonely"
        monkeypatch.setitem(RULES, "aten::lonely", lonely)
        with pytest.raises(AssertionError, match=r"runs \['.*lonely'\]"):
            test_every_rule_stands_in_a_network_of_the_suite_of_adapters(None, device)


def test_extensions_of_the_page_are_short():
    for cls in (LayerByLayer, LayerwiseFusion, ByMagnitude, MagnitudeFusion, Centre):
        assert f">>> class {cls.__name__}(" in PAGE.read_text()
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        assert block.count("\n") < 40


class Twice(MagnitudeFusion):
    """With a parameter beside that of its base, and one with another default."""

    def __init__(self, depth=3, *, correction="regression", **options):
        super().__init__(correction=correction, **options)
        self.depth = depth


def test_options_are_parameters():
    fusion = Twice(weights=[1, 2], verbose=0)
    assert {*fusion.get_params()} == {*VanillaAveraging().get_params(), "depth", "power"}
    assert fusion.correction == "regression" and Twice(correction=None).correction is None
    assert repr(clone(fusion)) == repr(fusion) == "Twice(weights=[1, 2])"
    assert list(inspect.signature(Twice).parameters)[:4] == ["depth", "correction", "power", "weights"]
    assert clone(fusion.set_params(depth=5, power=3.0)).get_params() == fusion.get_params()
    with pytest.raises(TypeError, match="wieghts"):
        Twice(wieghts=[1, 2])
    with pytest.raises(ValueError, match="Did you mean 'depth'"):
        fusion.set_params(dept=5)
    with pytest.raises(ValueError, match="'verbose' parameter of Twice"):
        Twice(verbose="much").fit(family("mlp", 1))


class CentreOnFew(Centre):
    """A correction of which nothing but its class says that it is one."""


def test_an_own_estimator_with_an_own_correction_is_saved_pickled_and_searched(tmp_path):
    models = family("mlp", 2)
    X = np.random.default_rng(0).normal(size=(40, 5))
    y = models[0](torch.as_tensor(X)).argmax(1).numpy()
    fusion = MagnitudeFusion(2.0, correction=(CentreOnFew(max_rows=50), "repair"), random_state=0)
    search = GridSearchCV(fusion, {"power": [0.5, 2.0], "correction": [None, Centre()]}, cv=2, error_score="raise")
    search.fit(FusionInput(models, X), y)
    assert search.cv_results_["mean_test_score"].shape == (4,)
    fusion.fit(FusionInput(models, X))
    assert_same(values(pickle.loads(pickle.dumps(fusion)).fused_model_), values(fusion.fused_model_))
    fusion.save(tmp_path / "own")
    loaded = load(tmp_path / "own", models[0])
    assert type(loaded) is MagnitudeFusion and loaded.power == 2.0 and loaded.correction[0].max_rows == 50
    assert type(loaded.correction[0]) is CentreOnFew
    assert_same(values(loaded.fused_model_), values(fusion.fused_model_))
    refitted = clone(loaded).fit(FusionInput(models, X))
    assert_same(values(refitted.fused_model_), values(fusion.fused_model_))


class LastLeads(LayerByLayer):
    """Match with the last parent instead of the heaviest, in the reverse of its order."""

    def align(self, parents, target, objective=None):
        back = {name: Permutation(np.arange(size)[::-1]) for name, size in target.sizes.items()}
        couplings = [self.match_layers(parents[-1], parent) for parent in parents]
        return Alignment.of(parents, target, [{name: back[name].compose(c) for name, c in plans.items()} for plans in couplings])


def test_a_further_network_is_matched_whichever_leads():
    model, copy, other = *permuted("mlp"), family("mlp", 2)[1]
    fusion = OfRoles(Roles(LastLeads())).fit([other, model])
    assert_same(values(fusion.transform([copy])[0]), values(fusion.transform([model])[0]), 1e-12)
    wide = randomised(MLP([5, 9, 6, 3]), np.random.default_rng(0))
    with pytest.raises(WidthError, match=r"Got 8 neurons in group 'linears.0' of model 0 and 9 in model 1"):
        fusion.transform([wide])


def permuted(name):
    (model,) = family(name, 1)
    return model, disguised(model, np.random.default_rng(3))


class Fixed(Aligner):
    """Couplings as they are given."""

    def __init__(self, change):
        self.change = change

    def align(self, parents, target, objective=None):
        couplings = [{name: Coupling.identity(size) for name, size in target.sizes.items()} for _ in parents]
        self.change(couplings)
        return Alignment.of(parents, target, couplings)


class Lossy(WeightedMean):
    """Tensors of another name or shape."""

    def __init__(self, change):
        self.change = change

    def average(self, parents, objective=None):
        state = super().average(parents, objective)
        if self.change is None:
            return None
        self.change(state)
        return state


class Silent(Correction):
    """Nothing comes back."""

    def correct(self, fused, parents):
        return {}


class OfRoles(BaseFusion):
    """Whatever roles it is given."""

    def __init__(self, fixed_roles=None, **options):
        super().__init__(**options)
        self.fixed_roles = fixed_roles

    def roles(self):
        return self.fixed_roles


class Listing(Identity):
    """The couplings alone."""

    def align(self, *arguments):
        return super().align(*arguments).couplings


class Bare(BaseFusion):
    """Leaves out the parameters that all fusions have."""

    def __init__(self, power=1.0):
        self.power = power

    def roles(self):
        return Roles(Identity(), ByMagnitude(self.power))


def test_parameters_that_are_left_out_have_their_defaults():
    models = family("mlp", 2)
    assert set(Bare().get_params()) == {"power"}
    assert_same(values(Bare(2.0).fit(models).fused_model_), values(Plain(2.0).fit(models).fused_model_))


class Plain(Bare):
    """The same with all parameters."""

    def __init__(self, power=1.0, **options):
        BaseFusion.__init__(self, **options)
        self.power = power


WRONG = {
    "no roles": (Identity(), TypeError, r"OfRoles.roles must return Roles\(aligner, averager\). Got Identity"),
    "no alignment": (Roles(Listing()), TypeError, "Listing.align must return an Alignment. Got list"),
    "no tensors": (
        Roles(Identity(), Lossy(None)),
        FusionError,
        "Lossy must return all tensors of the target, by name. Got NoneType",
    ),
    "a group without a coupling": (
        Roles(Fixed(lambda couplings: couplings[1].pop("linears.1"))),
        FusionError,
        "Got no coupling of group 'linears.1' of model 1",
    ),
    "a coupling of another shape": (
        Roles(Fixed(lambda couplings: couplings[0].update({"linears.0": Coupling.identity(3)}))),
        WidthError,
        r"group 'linears.0' of model 0 .* \(8, 8\). Got \(3, 3\)",
    ),
    "a tensor that is not there": (
        Roles(Identity(), Lossy(lambda state: state.pop("linears.1.bias"))),
        FusionError,
        r"Lossy must return all tensors of the target, 'linears.1.bias' of shape \(6,\) among them. Got no such tensor",
    ),
    "a tensor of another shape": (
        Roles(Identity(), Lossy(lambda state: state.update({"linears.1.bias": torch.zeros(2)}))),
        FusionError,
        r"'linears.1.bias' of shape \(6,\) among them. Got shape \(2,\)",
    ),
}


def test_a_correction_that_returns_nothing_is_a_named_error():
    with pytest.raises(FusionError, match=r"Silent must return all tensors of the target, 'linears.0.weight'"):
        LayerwiseFusion(correction=Silent(), probe="noise", random_state=0).fit(family("mlp", 2))


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ((LayerByLayer,), "aligner must be an instance of Aligner. Got class LayerByLayer"),
        ((Identity(), ByMagnitude), "averager must be an instance of Averager. Got class ByMagnitude"),
        ((WeightedMean(), Identity()), "aligner must be an instance of Aligner"),
    ],
)
def test_roles_of_another_kind(roles, words):
    with pytest.raises(TypeError, match=words):
        Roles(*roles)


def test_bases_are_abstract():
    for base in (BaseFusion, Aligner, Averager, Correction):
        with pytest.raises(TypeError, match="abstract"):
            base()


@pytest.mark.parametrize("name", WRONG)
def test_what_a_role_does_wrong_is_a_named_error(name):
    roles, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        OfRoles(roles).fit(family("mlp", 2))
