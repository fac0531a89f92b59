"""Folders that an earlier version has written, commit e993798: they load bit by bit.

`expected.safetensors` holds what that version computed: parents, fused networks, plans and masses of all couplings, the parents
carried by `transform`, and probabilities.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sklearn_wbfuse import load

SAVED = Path(__file__).parent / "saved"


def network(width):
    layers = nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def expected():
    return load_file(SAVED / "expected.safetensors")


def within(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(("name", "n_parents"), [("entropic", 3), ("classifier", 2)])
def test_networks_couplings_and_what_they_do(expected, name, n_parents):
    loaded = load(SAVED / name, model=network(4))
    fusion = getattr(loaded, "fusion_", loaded)
    for key, tensor in within(expected, f"{name}.fused.").items():
        assert torch.equal(fusion.fused_model_.state_dict()[key], tensor), key
    assert len(fusion.couplings_) == n_parents
    for i, couplings in enumerate(fusion.couplings_):
        assert set(couplings) == set(within(expected, f"{name}.plan.{i}."))
        for group in couplings:
            assert torch.equal(torch.tensor(couplings[group]), expected[f"{name}.plan.{i}.{group}"])
            assert torch.equal(torch.tensor(couplings.coupling(group).mass), expected[f"{name}.mass.{i}.{group}"])
    parents = []
    for i in range(n_parents):
        state = within(expected, f"parent.{i}.")
        parents.append(network(len(state["0.bias"])))
        parents[-1].load_state_dict(state)
    for i, moved in enumerate(fusion.transform(parents)):  # known by their fingerprints
        for key, tensor in within(expected, f"{name}.moved.{i}.").items():
            torch.testing.assert_close(moved.state_dict()[key], tensor, msg=f"{i} {key}")


def test_a_classifier_predicts_what_it_did(expected):
    classifier = load(SAVED / "classifier", model=network(4))
    assert list(classifier.classes_) == ["no", "yes"]
    probabilities = classifier.predict_proba(expected["rows"].numpy())
    torch.testing.assert_close(torch.tensor(probabilities), expected["proba"])
