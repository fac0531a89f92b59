"""What `save` keeps of a fitted fusion, and how `load` brings it back."""

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
from ..persistence import PersistenceMixin, example_outputs, group_table, resized_to, restored_network
from .agreement import Agreement
from .configs import follow_widths

__all__ = ["StorageMixin", "stored_verdict"]


def stored_verdict(stored: Mapping[str, Any]) -> tuple[Agreement | None, str | None]:
    """The agreement that a save holds, or why it holds none."""
    found = stored.get("agreement")
    return None if found is None else Agreement(**found), stored.get("agreement_reason", "saved before it was measured at all")


class StorageMixin(PersistenceMixin):
    """A fitted fusion on disk: couplings and scales of the parents, groups, the fused network, and no rows."""

    _alignment: Alignment
    _verdict: Any
    agreement_: Any
    agreement_reason_: Any
    _specs: Sequence[NetworkSpec]
    _inputs: Any
    _masks: Mapping[str, Mask]
    _saw_rows: bool
    _seen: Sequence[str]

    def _stored(self) -> dict[str, Any]:
        found, specs = self._alignment, list(dict.fromkeys([self.graph_, *self._specs]))
        inputs, computed = self._stored_inputs()
        parents = zip(self._seen, self._specs, found.couplings, found.source_scales, strict=True)
        return {
            "graphs": [group_table(spec) for spec in specs],
            "energy": self.energy_,
            "n_iter": self.n_iter_,
            "history": self.history_,
            "agreement": None if self.agreement_ is None else self.agreement_.stored,
            "agreement_reason": self.agreement_reason_,
            "parents": [
                {"fingerprint": mark, "graph": specs.index(spec), "couplings": plans, "scales": own}
                for mark, spec, plans, own in parents
            ],
            "target_scales": found.target_scales,
            "masks": {name: (mask.weights, mask.factor) for name, mask in self._masks.items()},
            "inputs": inputs,
            "outputs": computed,
            "fused_model": self.fused_model_,
        }

    def _stored_inputs(self) -> tuple[Any, Any]:
        """Noise in place of rows that the discovery saw, where the network takes it, and what the network computes of it."""
        if self._saw_rows:
            with contextlib.suppress(Exception):  # a network may ask anything of its inputs
                noise = noise_like(self._inputs)
                found = example_outputs(self.fused_model_, noise)
                if found is not None and not any(leaf.isnan().any() for leaf in found):
                    return noise, found
            warnings.warn(
                "The save holds the inputs of the discovery, two rows of your data, since the network does not run "
                "on noise between their least and largest values; give example_inputs where these may not leave.",
                FusionWarning,
                stacklevel=2,
            )
        return self._inputs, example_outputs(self.fused_model_, self._inputs)

    def _restore(self, stored: Mapping[str, Any], model: nn.Module) -> None:
        parents, inputs = stored["parents"], stored["inputs"]
        found = resized_to(model, inputs, stored["graphs"])
        self.fused_model_ = restored_network(model, found[0], stored["fused_model"], inputs, stored["outputs"])
        follow_widths(self.fused_model_, model, inputs)
        self._masks = {name: Mask(*fields) for name, fields in stored.get("masks", {}).items()}
        own = [masked_spec(architecture.spec, self._masks) for architecture in found]
        self.graph_, self._specs, self._inputs = own[0], [own[p["graph"]] for p in parents], inputs
        self._saw_rows = False
        self.energy_, self.n_iter_, self.history_ = stored["energy"], stored["n_iter"], stored["history"]
        self._verdict = stored_verdict(stored)
        plans, scales = [p["couplings"] for p in parents], [p["scales"] for p in parents]
        self._alignment = Alignment(plans, scales, stored["target_scales"], self.energy_, self.n_iter_, self.history_)
        self.couplings_, self.n_models_in_ = [Couplings(own) for own in plans], len(parents)
        self._seen = [p["fingerprint"] for p in parents]
