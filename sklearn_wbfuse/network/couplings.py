r"""Couplings of neuron groups: which source neurons, with which mass, make up each target neuron.

A coupling acts on arrays along one axis. Output axes *average*, by :math:`\operatorname{diag}(1/p) \Pi`; input axes *split*, by
:math:`\Pi \operatorname{diag}(1/q)`, with the marginals p of the target and q of the source. Only this module applies couplings
to axes, composes and inverts them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["Coupling", "Couplings", "Permutation", "Plan", "along", "along_axis", "coupling_from"]


def along(vector: Tensor, axis: int, dims: int) -> Tensor:
    """Reshape a vector to broadcast along one axis of a tensor with `dims` dimensions."""
    return vector.view([-1 if a == axis else 1 for a in range(dims)])


def along_axis(
    array: Tensor, axis: int, *, index: Tensor | None = None, factor: Tensor | None = None, matrix: Tensor | None = None
) -> Tensor:
    """Apply a linear map to one axis of an array: a matrix, or a choice of entries and a factor for each.

    Without any of these the same array is returned.
    """
    axis %= array.dim()
    if matrix is not None:
        if axis == array.dim() - 1:
            return array @ matrix.mT
        return torch.movedim(torch.tensordot(matrix, array, dims=([1], [axis])), 0, axis)
    if index is not None:
        array = array.index_select(axis, index)
    return array if factor is None else array * along(factor, axis, array.dim())


class Coupling(ABC):
    r"""A coupling :math:`\Pi \in \Gamma(p, q)` between the neurons of a target and those of a source: abstract.

    :math:`\Pi` has shape (n, n^i) and total mass 1. Its marginals are p of shape (n,) and q of shape (n^i,), uniform by
    default. If neurons may change sign, the source measure is doubled, :math:`\{v, -v\}`, and the plan is
    :math:`\Pi^+ - \Pi^-`, of mass :math:`\Pi^+ + \Pi^-`.

    There are two kinds, `Permutation` and `Plan`, which both satisfy

    - ``identity.apply(x, axis)`` is x,
    - ``b.compose(a).apply(x, axis)`` is ``b.apply(a.apply(x, axis), axis)``,
    - ``a.inverse().inverse()`` is a, and the inverse of a permutation undoes it.
    """

    @staticmethod
    def identity(size: int) -> Permutation:
        """Return the coupling of every neuron with itself."""
        return Permutation(np.arange(size))

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n_target, n_source)."""

    @property
    @abstractmethod
    def plan(self) -> np.ndarray:
        r"""The plan :math:`\Pi^+ - \Pi^-`, a new array in double precision."""

    @property
    @abstractmethod
    def mass(self) -> np.ndarray:
        r"""The mass :math:`\Pi^+ + \Pi^-`, total 1, a new array in double precision."""

    @property
    def marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """The masses p of the target's neurons and q of the source's."""
        n, m = self.shape
        return np.full(n, 1 / n), np.full(m, 1 / m)

    @property
    def is_permutation(self) -> bool:
        """Whether target and source neurons correspond one to one, up to signs."""
        return isinstance(self, Permutation)

    @property
    def is_identity(self) -> bool:
        """Whether every neuron is known to be coupled with itself, with its sign."""
        return False

    @abstractmethod
    def apply(self, array: Tensor, axis: int, role: str = "out", odd: bool = False) -> Tensor:
        r"""Carry one axis of an array from source to target neurons.

        Parameters
        ----------
        array : Tensor
            Of size n_source along `axis`.
        axis : int
        role : {"out", "in", "mass"}
            "out" averages the sources of each target neuron; "in" splits each source among its copies; "mass" multiplies by
            :math:`\Pi` itself.
        odd : bool
            Whether the axis changes sign with its neurons; if not, signs are ignored.

        Returns
        -------
        Tensor
            The same tensor if the coupling is the identity.
        """

    @abstractmethod
    def compose(self, first: Coupling) -> Coupling:
        r"""Compose with a coupling to apply before this one: :math:`\Pi \operatorname{diag}(1/r) \Pi'`, r the common marginal."""

    @abstractmethod
    def inverse(self) -> Coupling:
        """Return the coupling of the source with the target."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """The arguments of `coupling_from` that make this coupling again."""

    def barycentric_map(self, role: str = "out", odd: bool = False) -> np.ndarray:
        """Return the matrix by which `apply` multiplies, of shape (n_target, n_source), in double precision."""
        eye = torch.eye(self.shape[1], dtype=torch.float64)
        return self.apply(eye, 0, role, odd).numpy()

    def marginal_error(self) -> float:
        """Return the L1 distance of the marginals of the mass from `marginals`."""
        mass, (rows, columns) = self.mass, self.marginals
        return float(np.abs(mass.sum(1) - rows).sum() + np.abs(mass.sum(0) - columns).sum())

    def same_as(self, other: Coupling, tol: float = 1e-12) -> bool:
        """Return whether plans and masses differ by at most `tol` in L1 norm."""
        if self.shape != other.shape or float(np.abs(self.plan - other.plan).sum()) > tol:
            return False
        return float(np.abs(self.mass - other.mass).sum()) <= tol

    def __repr__(self) -> str:
        return f"Coupling(plan of shape {self.shape})"


class Permutation(Coupling):
    """A coupling of target neuron t with source neuron ``index[t]``, up to its sign; the plan is computed on access.

    Parameters
    ----------
    index : ndarray of shape (n,)
    signs : ndarray of shape (n,), optional
        Signs of the target's neurons, 1 or -1; 1 by default.

    Attributes
    ----------
    signs : ndarray of shape (n,) or None
        None if no neuron changes sign.

    Examples
    --------
    >>> import numpy as np
    >>> Permutation(np.array([1, 0]), np.array([1, -1])).plan
    array([[ 0. ,  0.5],
           [-0.5,  0. ]])
    """

    def __init__(self, index: np.ndarray, signs: np.ndarray | None = None):
        self.index = np.asarray(index, dtype=np.int64)
        self.signs = None if signs is None or (np.asarray(signs) > 0).all() else np.asarray(signs, dtype=np.float64)

    @property
    def shape(self) -> tuple[int, int]:
        """See `Coupling`."""
        return len(self.index), len(self.index)

    @property
    def sign(self) -> np.ndarray:
        """The signs of all neurons, of shape (n,)."""
        return np.ones(len(self.index)) if self.signs is None else self.signs

    @property
    def is_identity(self) -> bool:
        """See `Coupling`."""
        return self.signs is None and bool((self.index == np.arange(len(self.index))).all())

    @property
    def plan(self) -> np.ndarray:
        """See `Coupling`."""
        plan = np.zeros(self.shape)
        plan[np.arange(len(self.index)), self.index] = self.sign / len(self.index)
        return plan

    @property
    def mass(self) -> np.ndarray:
        """See `Coupling`."""
        return np.abs(self.plan)

    def apply(self, array: Tensor, axis: int, role: str = "out", odd: bool = False) -> Tensor:
        """See `Coupling`."""
        if role == "mass":
            array = array / len(self.index)
        if self.is_identity:
            return array
        signs = torch.as_tensor(self.signs, dtype=array.dtype, device=array.device) if odd and self.signs is not None else None
        return along_axis(array, axis, index=torch.as_tensor(self.index, device=array.device), factor=signs)

    def compose(self, first: Coupling) -> Coupling:
        """See `Coupling`."""
        if isinstance(first, Permutation):
            return Permutation(first.index[self.index], self.sign * first.sign[self.index])
        return first.inverse().compose(self.inverse()).inverse()

    def inverse(self) -> Permutation:
        """See `Coupling`."""
        order = np.argsort(self.index)
        return Permutation(order, None if self.signs is None else self.signs[order])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """See `Coupling`."""
        return {"index": self.index} | ({} if self.signs is None else {"signs": self.signs})

    def same_as(self, other: Coupling, tol: float = 1e-12) -> bool:
        """See `Coupling`; permutations are compared without computing their plans."""
        if isinstance(other, Permutation) and self.shape == other.shape:
            return 2 * float(np.mean((self.index != other.index) | (self.sign != other.sign))) <= tol
        return super().same_as(other, tol)

    def __repr__(self) -> str:
        return f"Coupling({'signed ' * (self.signs is not None)}permutation of shape {self.shape})"


class Plan(Coupling):
    r"""A transport plan, with its mass if signs cancel and its marginals if these are not uniform.

    Parameters
    ----------
    plan : ndarray of shape (n_target, n_source)
        :math:`\Pi^+ - \Pi^-`.
    mass : ndarray of shape (n_target, n_source), optional
        :math:`\Pi^+ + \Pi^-`; the magnitude of `plan` by default.
    marginals : pair of ndarrays of shapes (n_target,) and (n_source,), optional
        Uniform by default.
    """

    def __init__(self, plan: np.ndarray, mass: np.ndarray | None = None, marginals: tuple[np.ndarray, np.ndarray] | None = None):
        self._plan = np.asarray(plan, dtype=np.float64)
        self._mass = None if mass is None else np.asarray(mass, dtype=np.float64)
        self._marginals = None if marginals is None else (np.asarray(marginals[0], float), np.asarray(marginals[1], float))

    @property
    def shape(self) -> tuple[int, int]:
        """See `Coupling`."""
        return self._plan.shape

    @property
    def plan(self) -> np.ndarray:
        """See `Coupling`."""
        return self._plan.copy()

    @property
    def mass(self) -> np.ndarray:
        """See `Coupling`."""
        return np.abs(self._plan) if self._mass is None else self._mass.copy()

    @property
    def marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Coupling`."""
        return super().marginals if self._marginals is None else (self._marginals[0].copy(), self._marginals[1].copy())

    def apply(self, array: Tensor, axis: int, role: str = "out", odd: bool = False) -> Tensor:
        """See `Coupling`."""
        matrix = self.plan if odd else self.mass
        side = 0 if role == "out" else 1
        if role != "mass" and self._marginals is None:
            matrix *= self.shape[side]
        elif role != "mass" and self._marginals is not None:
            matrix *= _reciprocal(self._marginals[side])[:, None] if role == "out" else _reciprocal(self._marginals[side])
        return along_axis(array, axis, matrix=torch.as_tensor(matrix, dtype=array.dtype, device=array.device))

    def compose(self, first: Coupling) -> Plan:
        """See `Coupling`."""
        if isinstance(first, Permutation):  # neurons keep their masses
            back = first.inverse().index
            marginals = None if self._marginals is None else (self._marginals[0], self._marginals[1][back])
            return Plan((self._plan * first.sign)[:, back], None if self._mass is None else self._mass[:, back], marginals)
        share = _reciprocal(first.marginals[0])
        plan, mass = ((a * share) @ b for a, b in ((self.plan, first.plan), (self.mass, first.mass)))
        has_marginals = any(isinstance(c, Plan) and c._marginals is not None for c in (self, first))
        return Plan(plan, mass, (self.marginals[0], first.marginals[1]) if has_marginals else None)

    def inverse(self) -> Plan:
        """See `Coupling`."""
        marginals = None if self._marginals is None else (self._marginals[1], self._marginals[0])
        return Plan(self._plan.T, None if self._mass is None else self._mass.T, marginals)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """See `Coupling`."""
        arrays = {"plan": self.plan}
        if self._mass is not None and not (self._mass == np.abs(self._plan)).all():
            arrays["mass"] = self.mass
        if self._marginals is not None:
            arrays |= {"target_masses": self._marginals[0], "source_masses": self._marginals[1]}
        return arrays


def _reciprocal(masses: np.ndarray) -> np.ndarray:
    """Return 1 / masses, and 0 for neurons without mass."""
    return np.divide(1.0, masses, out=np.zeros_like(masses), where=masses > 0)


def coupling_from(
    plan: np.ndarray | None = None,
    mass: np.ndarray | None = None,
    *,
    index: np.ndarray | None = None,
    signs: np.ndarray | None = None,
    target_masses: np.ndarray | None = None,
    source_masses: np.ndarray | None = None,
) -> Coupling:
    """Make a coupling from its `Coupling.arrays`.

    Examples
    --------
    >>> import numpy as np
    >>> coupling_from(index=np.array([1, 0]))
    Coupling(permutation of shape (2, 2))
    """
    if index is not None:
        return Permutation(index, signs)
    if plan is None:
        raise ValueError("Give either a plan or an index.")
    return Plan(plan, mass, None if target_masses is None or source_masses is None else (target_masses, source_masses))


class Couplings(Mapping[str, np.ndarray]):
    r"""The couplings of one model, a read-only mapping from group name to plan.

    ``couplings[name]`` is :math:`\Pi^+ - \Pi^-`, an array of shape (n_target, n_source). If no neuron changes sign, this is the
    mass, of total 1; otherwise the mass is ``coupling(name).mass``, :math:`\Pi^+ + \Pi^-`.
    """

    def __init__(self, couplings: Mapping[str, Coupling]):
        self._couplings = dict(couplings)

    def coupling(self, name: str) -> Coupling:
        """Return the `Coupling` of a group."""
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
