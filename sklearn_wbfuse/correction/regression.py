r"""Ridge regression of every layer on what the parents compute: a barycenter in function space.

For a layer with inputs x of the fused network, and target :math:`y = \sum_i \lambda_i y^i` of the parents' aligned outputs,

.. math:: \min_{W, b} \sum_x \|y - W x - b\|^2 + \rho \|W - \bar W\|^2, \qquad \rho = r \cdot \operatorname{tr}(G) / k

with the averaged weights :math:`\bar W` and the Gram matrix G of the k inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval
from torch import Tensor

from ..graph import Steps
from .affine import Writer
from .alongside import Parent, Rows, run_alongside
from .equations import Equation, equations
from .recurrent import Cell, Part, Sequences, levels

__all__ = ["Regression"]

_HELD_OUT = 5
"""Every fifth sample tells how far to go towards the solution."""

_ROUNDS = 2
"""Regressions of a layer that a ReLU follows, each on what the one before has left."""

_EQUAL = 1e-9
"""Residuals of this share of the target's squares are rounding."""


class _Ridge:
    """A ridge regression whose rows come batch by batch; its matrix is factorised once, for any residuals.

    Parameters
    ----------
    ridge : float
    centred : bool
        Whether an offset is fitted.
    """

    def __init__(self, ridge: float, *, centred: bool):
        self.ridge, self.centred, self.n = ridge, centred, 0
        self.gram: Any = 0.0
        self.sum: Any = 0.0
        self.factor: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Rows of shape (groups, rows, inputs)."""
        self.gram = self.gram + (x.mT @ x).double()
        self.sum = self.sum + x.sum(1, dtype=torch.float64)
        self.n += x.shape[1]

    @property
    def mean(self) -> Tensor:
        """Mean of the inputs, shape (groups, inputs)."""
        return self.sum / self.n

    @property
    def covariance(self) -> Tensor:
        """Covariance of the inputs, shape (groups, inputs, inputs)."""
        return self.gram / self.n - self.mean[:, :, None] * self.mean[:, None]

    def solve(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The change of the matrix, shape (groups, outputs, inputs), and of the offset, that explain residuals.

        Parameters
        ----------
        pairs : iterable of (x, e)
            The rows and their residuals, shape (groups, rows, outputs).
        """
        cross: Any = 0.0
        total: Any = 0.0
        for x, e in pairs:
            cross, total, like = cross + (x.mT @ e).double(), total + e.sum(1, dtype=torch.float64), x
        if self.factor is None:
            matrix = self.covariance * self.n if self.centred else self.gram.clone()
            diagonal = matrix.diagonal(dim1=1, dim2=2)
            diagonal += self.ridge * diagonal.mean(1, keepdim=True)
            diagonal[diagonal <= 0] = 1.0  # inputs that are always 0
            self.factor = torch.linalg.cholesky_ex(matrix).L
        if self.centred:
            cross = cross - self.sum[:, :, None] * total[:, None] / self.n
        change = torch.cholesky_solve(cross, self.factor).mT
        shift = total / self.n - (change @ self.mean[..., None])[..., 0] if self.centred else torch.zeros_like(total)
        return change.to(like), shift.to(like)


class Regression(BaseEstimator):
    r"""Regress every layer of a fused network, in order, on the weighted mean of its parents' aligned outputs.

    Layers that write into one sum are regressed together, batch norms are part of the layer in front of them, the gates of a
    recurrent layer are regressed on input and state, where the state is the one that the mean gates lead to. Weights that
    several operations share stay as they are, and no layer gets a bias that it has not. A fifth of the samples is held out and
    decides how far each layer goes from the averaged weights to the solution: not at all if the error does not fall.

    Parameters
    ----------
    ridge : float, default=0.03
        :math:`r`, the weight of the distance to the averaged weights, relative to the mean square of an input.
    max_rows : int, default=20000
        Largest number of rows of one regression; of convolutions and sequences positions are drawn.

    Examples
    --------
    >>> import torch
    >>> from sklearn_wbfuse import WassersteinFusion
    >>> from sklearn_wbfuse.datasets import MLP
    >>> parents = [MLP([4, 8, 2]), MLP([4, 8, 2])]
    >>> fusion = WassersteinFusion(correction=Regression(ridge=0.1), probe="noise", random_state=0).fit(parents)
    """

    _parameter_constraints: ClassVar[dict] = {
        "ridge": [Interval(Real, 0, None, closed="neither")],
        "max_rows": [Interval(Integral, 10, None, closed="left")],
    }

    def __init__(self, ridge: float = 0.03, *, max_rows: int = 20000):
        self.ridge = ridge
        self.max_rows = max_rows

    def correct(self, fused: Steps, parents: Sequence[Parent], generator: torch.Generator) -> None:
        """Change the tensors of the fused network.

        Parameters
        ----------
        fused : Steps
            At its start; `state` is changed.
        parents : list of Parent
            At their start.
        generator : Generator
            Draws positions.
        """

        def correct(equation: Equation) -> None:
            if equation.cells:
                _regress_layer(equation, fused, parents, self)
            if equation.writers:
                rows = Rows(equation, fused, parents, self.max_rows, generator)
                _regress(rows, self.ridge)

        run_alongside(fused, parents, equations(fused.nodes, fused.parameters), correct)


def _regress(rows: Rows, ridge: float) -> None:
    """All layers of an equation together; layers in groups one after the other."""
    state, writers = rows.fused.state, rows.equation.writers
    several = len(writers) > 1 and any(len(w.affine(state)[0]) > 1 for w in writers)
    for own in [[w] for w in writers] if several else [writers]:
        _regress_writers(rows, own, ridge)


def _regress_writers(rows: Rows, writers: Sequence[Writer], ridge: float) -> None:
    """Change some layers of an equation, the others as they are, so that less of its residuals is left."""
    state, maps = rows.fused.state, {w: w.affine(rows.fused.state) for w in rows.equation.writers}
    bears = next((w for w in writers if w.has_offset), None)
    batches, scale = [], 0.0
    for batch in range(rows.fused.n_batches):
        read = {w: rows.inputs(w, batch) for w in maps}
        target, rest = rows.target(batch)
        own: Any = 0.0
        for w, (matrix, offset) in maps.items():
            own = own + _outputs(read[w], matrix, offset)
        scale += float(target.square().sum(dtype=torch.float64))
        out = rows.sample[batch] % _HELD_OUT == _HELD_OUT - 1
        batches.append(_Batch(torch.cat([read[w] for w in writers], 2), target, rest, own, out, rows.rectified))
    before = sum(b.error for b in batches)
    if before <= _EQUAL * scale:
        return
    solver = _Ridge(ridge, centred=bears is not None)
    for b in batches:
        solver.add(b.seen)
    change: Any = 0.0
    shift: Any = 0.0
    for _ in range(_ROUNDS if rows.rectified else 1):
        found = solver.solve([(b.seen, b.residuals[:, ~b.out]) for b in batches])
        step = _step([(b.residuals[:, b.out], b.x[:, b.out] @ found[0].mT + found[1][:, None]) for b in batches])
        for b in batches:
            b.advance(step * found[0], step * found[1])
        after = sum(b.error for b in batches)
        if not after < before:
            break
        before, change, shift = after, change + step * found[0], shift + step * found[1]
    at, mean, covariance = 0, solver.mean, solver.covariance
    for w in writers if isinstance(change, Tensor) else ():
        matrix, offset = maps[w]
        cut = slice(at, at + matrix.shape[2])
        matrix = (matrix + change[:, :, cut]).double()
        moments = (matrix @ mean[:, cut, None])[..., 0], ((matrix @ covariance[:, cut, cut]) * matrix).sum(2)
        w.write(state, matrix.to(offset), offset + shift if w is bears else offset, *(m.to(offset) for m in moments))
        at = cut.stop


def _outputs(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """What rows (groups, rows, inputs) are mapped to, shape (rows, channels)."""
    return torch.baddbmm(offset[:, None], x, matrix.mT).transpose(0, 1).flatten(1)


class _Batch:
    """The rows of one batch: inputs, targets and what the layers compute so far.

    Parameters
    ----------
    x : Tensor of shape (groups, rows, inputs)
    target, own : Tensor of shape (rows, channels)
        What the layers should compute, and what they do.
    rest : Tensor or float
        What comes into the sum from elsewhere.
    out : Tensor of bool
        Rows that are held out.
    rectified : bool
        Whether a ReLU alone reads the sum: how far below 0 it is then does not matter.

    Attributes
    ----------
    residuals : Tensor of shape (groups, rows, outputs)
    error : float
        Squared residuals of the rows that are held out.
    seen : Tensor
        Inputs of the others.
    """

    def __init__(self, x: Tensor, target: Tensor, rest: Any, own: Tensor, out: Tensor, rectified: bool):
        self.x, self.out, self.seen, self.rectified = x, out, x[:, ~out], rectified
        self.wanted = (target + rest).relu() if rectified else target
        self.own = own + rest if rectified else own
        self._compare()

    def _compare(self) -> None:
        now = torch.where(self.wanted > 0, self.own, self.own.relu()) if self.rectified else self.own
        self.residuals = (self.wanted - now).unflatten(1, (len(self.x), -1)).transpose(0, 1)
        self.error = float(self.residuals[:, self.out].square().sum(dtype=torch.float64))

    def advance(self, change: Tensor, shift: Tensor) -> None:
        """Change what the layers compute."""
        self.own = self.own + _outputs(self.x, change, shift)
        self._compare()


def _step(held: Sequence[tuple[Tensor, Tensor]]) -> float:
    """How much of a predicted change lowers the held-out residuals most, from 0 to 1."""
    top = sum(float((e * d).sum(dtype=torch.float64)) for e, d in held)
    bottom = sum(float(d.double().square().sum()) for _, d in held)
    return min(max(top / bottom, 0.0), 1.0) if bottom > 0 else 0.0


def _regress_layer(equation: Equation, fused: Steps, parents: Sequence[Parent], options: Regression) -> None:
    """Regress the cells of a recurrent layer, level by level."""
    at = fused.position[equation.at]
    own, theirs = Sequences(equation.at, fused), [Sequences(p.steps.nodes[at], p.steps) for p in parents]
    for level in levels(equation.cells):
        for cell in level:
            few = own.cut(options.max_rows)
            _regress_cell(cell, few, [(p, s.cut(options.max_rows)) for p, s in zip(parents, theirs, strict=True)], options.ridge)
        for sequences in (own, *theirs):
            sequences.advance(level)


def _regress_cell(cell: Cell, own: Sequences, parents: Sequence[tuple[Parent, Sequences]], ridge: float) -> None:
    """Regress the gates of one cell; the solution is kept if the states come closer.

    The regression is forced with the states that the parents' mean gates lead to. The mean states would not do: they are not
    what the mean gates lead to.
    """
    state, inputs, labelled = own.state, own.read(cell), ((cell.w_ih, 0), (cell.w_hh, 0))
    gates: list[Any] = [0.0] * len(inputs)
    for parent, theirs in parents:
        for batch, (x, h) in enumerate(theirs.forced(cell)):
            halves = zip(cell.halves(theirs.state, x, h), labelled, strict=True)
            gates[batch] = gates[batch] + parent.weight * cell.gates(*(parent.carried(half, at) for half, at in halves))
    wanted = [cell.states(state, g, start) for g, start in zip(gates, own.initial, strict=True)]
    pairs: dict[Part, list[tuple[Tensor, Tensor]]] = {}
    for x, g, states, start in zip(inputs, gates, wanted, own.initial, strict=True):
        h, taken = cell.before(states, start), _taken(x)
        e = g - cell.gates(*cell.halves(state, x, h))
        for part in cell.parts(g.shape[-1]):
            read = [t[:, taken].flatten(0, 1) for t, is_read in ((x, part.reads_input), (h, part.reads_state)) if is_read]
            pairs.setdefault(part, []).append((torch.cat(read, 1)[None], e[:, taken, part.rows].flatten(0, 1)[None]))
    changed = dict(state)
    for part, found in pairs.items():
        solver = _Ridge(ridge, centred=cell.b_ih is not None)
        for x, _ in found:
            solver.add(x)
        matrix, offset = solver.solve(found)
        cell.change(changed, part, matrix[0], offset[0])

    def error(state: Mapping[str, Tensor]) -> float:
        runs = zip(own.run(cell, state), wanted, strict=True)
        return sum(float((r - h)[:, ~_taken(h)].double().square().sum()) for r, h in runs)

    before, scale = error(state), sum(float(h.double().square().sum()) for h in wanted)
    if before > _EQUAL * scale and error(changed) < before:
        state.update(changed)


def _taken(sequence: Tensor) -> Tensor:
    """Which samples of a sequence (steps, batch, features) are regressed on; the others are held out."""
    return torch.arange(sequence.shape[1], device=sequence.device) % _HELD_OUT != _HELD_OUT - 1
