"""Couplings of neuron groups: which source neurons, with which mass, make up each target neuron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

__all__ = ["Coupling", "Couplings"]


class Coupling:
    r"""A coupling :math:`\Pi` between the neurons of a target and those of a source, with uniform marginals.

    :math:`\Pi \in \Gamma(1/n, 1/n^i)`, shape (n, n^i), total mass 1. Where neurons may change sign, the source measure is
    doubled, :math:`\{v, -v\}`, and the plan :math:`\Pi^+ - \Pi^-`, of mass :math:`\Pi^+ + \Pi^-`. A permutation is stored as
    its index and signs and made dense on access only.

    Parameters
    ----------
    plan : ndarray of shape (n_target, n_source) or None
        :math:`\Pi^+ - \Pi^-`.
    mass : ndarray of shape (n_target, n_source) or None
        :math:`\Pi^+ + \Pi^-`; the magnitude of `plan` by default.
    index : ndarray of shape (n,) or None
        Instead of a plan: target neuron t is source neuron ``index[t]``.
    signs : ndarray of shape (n,) or None
        Instead of a plan: the signs of the target's neurons, 1 or -1; 1 by default.

    Examples
    --------
    >>> import numpy as np
    >>> Coupling(index=np.array([1, 0]), signs=np.array([1, -1])).plan
    array([[ 0. ,  0.5],
           [-0.5,  0. ]])
    """

    def __init__(
        self,
        plan: np.ndarray | None = None,
        mass: np.ndarray | None = None,
        *,
        index: np.ndarray | None = None,
        signs: np.ndarray | None = None,
    ):
        if (plan is None) == (index is None):
            raise ValueError("Give either a plan or an index.")
        self._plan = None if plan is None else np.asarray(plan, dtype=np.float64)
        self._mass = None if mass is None else np.asarray(mass, dtype=np.float64)
        self.index = None if index is None else np.asarray(index, dtype=np.int64)
        self.signs = None if signs is None or (signs > 0).all() else np.asarray(signs, dtype=np.float64)

    @classmethod
    def identity(cls, size: int) -> Coupling:
        """Every neuron stays where it is."""
        return cls(index=np.arange(size))

    @property
    def shape(self) -> tuple[int, int]:
        """(n_target, n_source)."""
        if self.index is not None:
            return len(self.index), len(self.index)
        assert self._plan is not None
        return self._plan.shape

    @property
    def is_permutation(self) -> bool:
        """Whether every target neuron is exactly one source neuron, up to its sign, and the other way round."""
        return self.index is not None

    @property
    def is_identity(self) -> bool:
        """Whether every neuron stays where it is, with its sign."""
        return self.index is not None and self.signs is None and bool((self.index == np.arange(len(self.index))).all())

    @property
    def plan(self) -> np.ndarray:
        r"""The plan :math:`\Pi^+ - \Pi^-`, float64; a fresh array."""
        if self.index is None:
            assert self._plan is not None
            return self._plan.copy()
        plan = np.zeros(self.shape)
        plan[np.arange(len(self.index)), self.index] = (1.0 if self.signs is None else self.signs) / len(self.index)
        return plan

    @property
    def mass(self) -> np.ndarray:
        r"""The mass :math:`\Pi^+ + \Pi^-`, float64, total 1; a fresh array."""
        return np.abs(self.plan) if self._mass is None else self._mass.copy()

    def barycentric_map(self, role: str, odd: bool = False) -> np.ndarray:
        r"""Matrix that carries source neurons to target neurons.

        "out": :math:`n \Pi`, rows of mass 1: each target neuron *averages* its sources.
        "in": :math:`n^i \Pi`, columns of mass 1: each source weight is *split* over its copies.
        An `odd` axis goes with the signs of its neurons, any other does not see them.
        """
        return (self.plan if odd else self.mass) * self.shape[0 if role == "out" else 1]

    def marginal_error(self) -> float:
        """L1 distance of both marginals from the uniform ones."""
        mass = self.mass
        rows, columns = mass.shape
        return float(np.abs(mass.sum(1) - 1 / rows).sum() + np.abs(mass.sum(0) - 1 / columns).sum())

    def same_as(self, other: Coupling, tol: float = 1e-12) -> bool:
        """Whether two couplings move less than `tol` of the mass differently."""
        if self.index is not None and other.index is not None and self.shape == other.shape:  # without their plans
            signs = [1.0 if c.signs is None else c.signs for c in (self, other)]
            return 2 * float(np.mean((self.index != other.index) | (signs[0] != np.asarray(signs[1])))) <= tol
        if self.shape != other.shape or float(np.abs(self.plan - other.plan).sum()) > tol:
            return False
        return (self._mass is None and other._mass is None) or float(np.abs(self.mass - other.mass).sum()) <= tol

    def __repr__(self) -> str:
        kind = ("signed " if self.signs is not None else "") + ("permutation" if self.is_permutation else "plan")
        return f"Coupling({kind} of shape {self.shape})"


class Couplings(Mapping[str, np.ndarray]):
    r"""The couplings of one model: a read-only mapping from group name to plan.

    ``couplings[name]`` is :math:`\Pi^+ - \Pi^-`, an array of shape (n_target, n_source): the mass plan, of total mass 1, where no
    neuron changes sign. ``coupling(name).mass`` is :math:`\Pi^+ + \Pi^-` in any case.
    """

    def __init__(self, couplings: Mapping[str, Coupling]):
        self._couplings = dict(couplings)

    def coupling(self, name: str) -> Coupling:
        """The `Coupling` of a group."""
        return self._couplings[name]

    def __getitem__(self, name: str) -> np.ndarray:
        plan = self._couplings[name].plan
        plan.flags.writeable = False
        return plan

    def __iter__(self) -> Iterator[str]:
        return iter(self._couplings)

    def __len__(self) -> int:
        return len(self._couplings)

    def __repr__(self) -> str:
        inner = ", ".join(f"{name!r}: {c!r}" for name, c in self._couplings.items())
        return f"Couplings({{{inner}}})"
