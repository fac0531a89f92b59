r"""Couplings of neuron groups: which source neurons, with which mass, make up each target neuron.

A coupling acts on arrays along one axis. Output axes *average*, by :math:`\operatorname{diag}(1/p) \Pi`; input axes *split*, by
:math:`\Pi \operatorname{diag}(1/q)`, with the marginals p of the target and q of the source. How that is done to an axis,
composed and undone is said here and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["Coupling", "Couplings", "Permutation", "Plan", "along", "along_axis", "coupling_from"]


def along(vector: Tensor, axis: int, dims: int) -> Tensor:
    """A vector shaped to broadcast along one axis of a tensor with `dims` dimensions."""
    return vector.view([-1 if a == axis else 1 for a in range(dims)])


def along_axis(
    array: Tensor, axis: int, *, index: Tensor | None = None, factor: Tensor | None = None, matrix: Tensor | None = None
) -> Tensor:
    """An array after a linear map of one axis: a matrix, or a choice of entries times a factor for each.

    It is the same array where nothing is given.
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

    :math:`\Pi` has shape (n, n^i) and total mass 1; its marginals are p of shape (n,) and q of shape (n^i,), uniform unless
    something else is said. Where neurons may change sign, the source measure is doubled, :math:`\{v, -v\}`, and the plan is
    :math:`\Pi^+ - \Pi^-`, of mass :math:`\Pi^+ + \Pi^-`.

    There are two kinds, `Permutation` and `Plan`, and for both of them

    - ``identity.apply(x, axis)`` is x,
    - ``b.compose(a).apply(x, axis)`` is ``b.apply(a.apply(x, axis), axis)``,
    - ``a.inverse().inverse()`` is a, and the inverse of a permutation undoes it.
    """

    @staticmethod
    def identity(size: int) -> Permutation:
        """Every neuron stays where it is."""
        return Permutation(np.arange(size))

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n_target, n_source)."""

    @property
    @abstractmethod
    def plan(self) -> np.ndarray:
        r"""The plan :math:`\Pi^+ - \Pi^-`, float64; a fresh array."""

    @property
    @abstractmethod
    def mass(self) -> np.ndarray:
        r"""The mass :math:`\Pi^+ + \Pi^-`, float64, total 1; a fresh array."""

    @property
    def marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """The masses p of the target's neurons and q of the source's."""
        n, m = self.shape
        return np.full(n, 1 / n), np.full(m, 1 / m)

    @property
    def is_permutation(self) -> bool:
        """Whether every target neuron is exactly one source neuron, up to its sign, and the other way round."""
        return isinstance(self, Permutation)

    @property
    def is_identity(self) -> bool:
        """Whether every neuron is known to stay where it is, with its sign."""
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
            "out" averages, each target neuron its sources; "in" splits each source over its copies; "mass" is :math:`\Pi`.
        odd : bool
            Whether the axis changes sign with its neurons; any other does not see signs.

        Returns
        -------
        Tensor
            The same one where all neurons stay where they are.
        """

    @abstractmethod
    def compose(self, first: Coupling) -> Coupling:
        r"""The coupling that does `first`, then this one: :math:`\Pi \operatorname{diag}(1/r) \Pi'`, r the marginal between."""

    @abstractmethod
    def inverse(self) -> Coupling:
        """The coupling of the source with the target."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """What `coupling_from` makes it of again."""

    def barycentric_map(self, role: str = "out", odd: bool = False) -> np.ndarray:
        """The matrix by which `apply` multiplies, shape (n_target, n_source), float64."""
        eye = torch.eye(self.shape[1], dtype=torch.float64)
        return self.apply(eye, 0, role, odd).numpy()

    def marginal_error(self) -> float:
        """L1 distance of both marginals of the mass from those that are claimed."""
        mass, (rows, columns) = self.mass, self.marginals
        return float(np.abs(mass.sum(1) - rows).sum() + np.abs(mass.sum(0) - columns).sum())

    def same_as(self, other: Coupling, tol: float = 1e-12) -> bool:
        """Whether two couplings move less than `tol` of the mass differently."""
        if self.shape != other.shape or float(np.abs(self.plan - other.plan).sum()) > tol:
            return False
        return float(np.abs(self.mass - other.mass).sum()) <= tol

    def __repr__(self) -> str:
        return f"Coupling(plan of shape {self.shape})"


class Permutation(Coupling):
    """Target neuron t is source neuron ``index[t]``, perhaps with the other sign; a plan is made on access only.

    Parameters
    ----------
    index : ndarray of shape (n,)
    signs : ndarray of shape (n,), optional
        Of the target's neurons, 1 or -1; 1 by default.

    Attributes
    ----------
    signs : ndarray of shape (n,) or None
        None where no neuron changes sign.

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
        """The signs of all neurons, shape (n,)."""
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
        """See `Coupling`; two permutations are compared without their plans."""
        if isinstance(other, Permutation) and self.shape == other.shape:
            return 2 * float(np.mean((self.index != other.index) | (self.sign != other.sign))) <= tol
        return super().same_as(other, tol)

    def __repr__(self) -> str:
        return f"Coupling({'signed ' * (self.signs is not None)}permutation of shape {self.shape})"


class Plan(Coupling):
    r"""A transport plan, with its mass where signs cancel and its marginals where these are not uniform.

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
        if isinstance(first, Permutation):  # whatever masses the neurons have, they keep them
            back = first.inverse().index
            marginals = None if self._marginals is None else (self._marginals[0], self._marginals[1][back])
            return Plan((self._plan * first.sign)[:, back], None if self._mass is None else self._mass[:, back], marginals)
        share = _reciprocal(first.marginals[0])
        plan, mass = ((a * share) @ b for a, b in ((self.plan, first.plan), (self.mass, first.mass)))
        given = any(isinstance(c, Plan) and c._marginals is not None for c in (self, first))
        return Plan(plan, mass, (self.marginals[0], first.marginals[1]) if given else None)

    def inverse(self) -> Plan:
        """See `Coupling`."""
        marginals = None if self._marginals is None else (self._marginals[1], self._marginals[0])
        return Plan(self._plan.T, None if self._mass is None else self._mass.T, marginals)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """See `Coupling`."""
        found = {"plan": self.plan}
        if self._mass is not None and not (self._mass == np.abs(self._plan)).all():
            found["mass"] = self.mass
        if self._marginals is not None:
            found |= {"target_masses": self._marginals[0], "source_masses": self._marginals[1]}
        return found


def _reciprocal(masses: np.ndarray) -> np.ndarray:
    """1 / masses; 0 of neurons without mass."""
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
    """A coupling of its `Coupling.arrays`.

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
