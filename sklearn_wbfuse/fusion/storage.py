"""The content of a saved fusion, and its restoration."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..alignment.alignment import Alignment
from ..data.fusion_input import noise_like
from ..discovery.masks import Mask, masked_spec
from ..exceptions import FusionWarning
from ..network.couplings import Couplings
from ..network.spec import NetworkSpec
from ..persistence import PersistenceMixin, example_outputs, group_table, resized_architectures, restored_network
from .agreement import Agreement
from .configs import follow_widths

__all__ = ["StorageMixin", "stored_agreement"]


def stored_agreement(stored: Mapping[str, Any]) -> tuple[Agreement | None, str | None]:
    """Return the agreement of a saved fusion, or the reason why it has none."""
    fields = stored.get("agreement")
    return None if fields is None else Agreement(**fields), stored.get("agreement_reason", "saved before it was measured at all")


class StorageMixin(PersistenceMixin):
    """Saves and restores a fitted fusion: couplings and scales of the parents, groups, the fused network, and no rows."""

    _alignment: Alignment
    _agreement: Any
    agreement_: Any
    agreement_reason_: Any
    _specs: Sequence[NetworkSpec]
    _inputs: Any
    _masks: Mapping[str, Mask]
    _saw_rows: bool
    _seen: Sequence[str]

    def _stored(self) -> dict[str, Any]:
        alignment, specs = self._alignment, list(dict.fromkeys([self.graph_, *self._specs]))
        inputs, outputs = self._stored_inputs()
        parents = zip(self._seen, self._specs, alignment.couplings, alignment.source_scales, strict=True)
        return {
            "graphs": [group_table(spec) for spec in specs],
            "energy": self.energy_,
            "n_iter": self.n_iter_,
            "history": self.history_,
            "agreement": None if self.agreement_ is None else self.agreement_.stored,
            "agreement_reason": self.agreement_reason_,
            "parents": [
                {"fingerprint": mark, "graph": specs.index(spec), "couplings": plans, "scales": scales}
                for mark, spec, plans, scales in parents
            ],
            "target_scales": alignment.target_scales,
            "masks": {name: (mask.weights, mask.factor) for name, mask in self._masks.items()},
            "inputs": inputs,
            "outputs": outputs,
            "fused_model": self.fused_model_,
        }

    def _stored_inputs(self) -> tuple[Any, Any]:
        """Return example inputs and the network's outputs: noise instead of rows of the user, if the network runs on it."""
        if self._saw_rows:
            with contextlib.suppress(Exception):  # a network may require anything of its inputs
                noise = noise_like(self._inputs)
                outputs = example_outputs(self.fused_model_, noise)
                if outputs is not None and not any(leaf.isnan().any() for leaf in outputs):
                    return noise, outputs
            warnings.warn(
                "The saved folder holds two rows of your data, the inputs of the discovery, since the network does not run on "
                "noise in their range; give example_inputs if no rows may be saved.",
                FusionWarning,
                stacklevel=2,
            )
        return self._inputs, example_outputs(self.fused_model_, self._inputs)

    def _restore(self, stored: Mapping[str, Any], model: nn.Module) -> None:
        parents, inputs = stored["parents"], stored["inputs"]
        architectures = resized_architectures(model, inputs, stored["graphs"])
        self.fused_model_ = restored_network(model, architectures[0], stored["fused_model"], inputs, stored["outputs"])
        follow_widths(self.fused_model_, model, inputs)
        self._masks = {name: Mask(*fields) for name, fields in stored.get("masks", {}).items()}
        specs = [masked_spec(architecture.spec, self._masks) for architecture in architectures]
        self.graph_, self._specs, self._inputs = specs[0], [specs[p["graph"]] for p in parents], inputs
        self._saw_rows = False
        self.energy_, self.n_iter_, self.history_ = stored["energy"], stored["n_iter"], stored["history"]
        self._agreement = stored_agreement(stored)
        plans, scales = [p["couplings"] for p in parents], [p["scales"] for p in parents]
        self._alignment = Alignment(plans, scales, stored["target_scales"], self.energy_, self.n_iter_, self.history_)
        self.couplings_, self.n_models_in_ = [Couplings(specs) for specs in plans], len(parents)
        self._seen = [p["fingerprint"] for p in parents]
