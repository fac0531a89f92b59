r"""Ridge regression of every layer on what the parents compute: a barycenter in function space.

For a layer with inputs x of the fused network, and target :math:`y = \sum_i \lambda_i y^i` of the parents' aligned outputs,

.. math:: \min_{W, b} \sum_x \|y - W x - b\|^2 + \rho \|W - \bar W\|^2, \qquad \rho = r \cdot \operatorname{tr}(G) / k

with the averaged weights :math:`\bar W` and the Gram matrix G of the k inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

_EQUAL = 1e-9
"""Residuals of this share of the target's squares are rounding."""


@dataclass
class Gram:
    """Sums over rows of inputs x and residuals e: what the normal equations need."""

    xx: Any = 0.0
    xe: Any = 0.0
    x: Any = 0.0
    e: Any = 0.0
    n: int = 0

    def add(self, x: Tensor, e: Tensor) -> None:
        """Rows x of shape (groups, rows, inputs) and e of shape (groups, rows, outputs)."""
        self.xx = self.xx + (x.mT @ x).double()
        self.xe = self.xe + (x.mT @ e).double()
        self.x, self.e = self.x + x.sum(1, dtype=torch.float64), self.e + e.sum(1, dtype=torch.float64)
        self.n += x.shape[1]

    def solve(self, ridge: float, *, offset: bool) -> tuple[Tensor, Tensor]:
        """The change of the matrix, shape (groups, outputs, inputs), and of the offset, 0 if there is to be none."""
        xx, xe = self.xx, self.xe
        if offset:
            xx = xx - self.x[:, :, None] * self.x[:, None] / self.n
            xe = xe - self.x[:, :, None] * self.e[:, None] / self.n
        diagonal = xx.diagonal(dim1=1, dim2=2)
        penalty = ridge * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float64).tiny
        diagonal = diagonal + penalty
        xx = xx.clone()
        xx.diagonal(dim1=1, dim2=2).copy_(torch.where(diagonal > 0, diagonal, 1.0))
        factor, _ = torch.linalg.cholesky_ex(xx)
        change = torch.cholesky_solve(xe, factor).mT
        shift = (self.e - (change @ self.x[..., None])[..., 0]) / self.n
        return change, shift if offset else torch.zeros_like(shift)


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
                _regress_layer(equation, fused, parents, self.ridge)
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
    state = rows.fused.state
    maps = {w: w.affine(state) for w in rows.equation.writers}
    widths = [maps[w][0].shape[2] for w in writers]
    bears = next((w for w in writers if w.has_offset), None)
    gram, held, scale = Gram(), [], 0.0
    for batch in range(rows.fused.n_batches):
        read = {w: rows.inputs(w, batch) for w in rows.equation.writers}
        e = rows.target(batch)
        scale += float(e.double().square().sum())
        for w, (matrix, offset) in maps.items():
            e = e - (read[w] @ matrix.mT + offset[:, None]).transpose(0, 1).flatten(1)
        x = torch.cat([read[w] for w in writers], 2)
        e = e.unflatten(1, (len(x), -1)).transpose(0, 1)
        out = rows.sample[batch] % _HELD_OUT == _HELD_OUT - 1
        held.append((x[:, out], e[:, out]))
        gram.add(x[:, ~out], e[:, ~out])
    before = sum(float(e.double().square().sum()) for _, e in held)
    if before <= _EQUAL * scale:
        return
    change, shift = (t.to(x) for t in gram.solve(ridge, offset=bears is not None))
    step = _step([(e, x @ change.mT + shift[:, None]) for x, e in held])
    if not step:
        return
    mean, second = gram.x / gram.n, gram.xx / gram.n
    second = second - mean[:, :, None] * mean[:, None]
    at = 0
    for w, width, own in zip(writers, widths, change.split(widths, 2), strict=True):
        matrix, offset = maps[w]
        matrix, cut = (matrix + step * own).double(), slice(at, at + width)
        moments = (matrix @ mean[:, cut, None])[..., 0], ((matrix @ second[:, cut, cut]) * matrix).sum(2)
        w.write(state, matrix.to(x), offset + step * shift if w is bears else offset, *(m.to(x) for m in moments))
        at += width


def _step(held: Sequence[tuple[Tensor, Tensor]]) -> float:
    """How much of a predicted change lowers the held-out residuals most, from 0 to 1."""
    top = sum(float((e * d).sum(dtype=torch.float64)) for e, d in held)
    bottom = sum(float(d.double().square().sum()) for _, d in held)
    return min(max(top / bottom, 0.0), 1.0) if bottom > 0 else 0.0


def _regress_layer(equation: Equation, fused: Steps, parents: Sequence[Parent], ridge: float) -> None:
    """Regress the cells of a recurrent layer, level by level."""
    at = fused.position[equation.at]
    own, theirs = Sequences(equation.at, fused), [Sequences(p.steps.nodes[at], p.steps) for p in parents]
    for level in levels(equation.cells):
        for cell in level:
            _regress_cell(cell, own, [(p, s) for p, s in zip(parents, theirs, strict=True)], ridge)
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
    grams: dict[Part, Gram] = {}
    for x, g, states, start in zip(inputs, gates, wanted, own.initial, strict=True):
        h, taken = cell.before(states, start), _taken(x)
        e = g - cell.gates(*cell.halves(state, x, h))
        for part in cell.parts(g.shape[-1]):
            read = [t[:, taken].flatten(0, 1) for t, is_read in ((x, part.reads_input), (h, part.reads_state)) if is_read]
            grams.setdefault(part, Gram()).add(torch.cat(read, 1)[None], e[:, taken, part.rows].flatten(0, 1)[None])
    changed = dict(state)
    for part, gram in grams.items():
        bias = cell.b_ih if part.reads_input else cell.b_hh
        matrix, offset = (t[0].to(inputs[0]) for t in gram.solve(ridge, offset=bias is not None))
        cell.change(changed, part, matrix, offset)

    def error(state: Mapping[str, Tensor]) -> float:
        runs = zip(own.run(cell, state), wanted, strict=True)
        return sum(float((r - h)[:, ~_taken(h)].double().square().sum()) for r, h in runs)

    before, scale = error(state), sum(float(h.double().square().sum()) for h in wanted)
    if before > _EQUAL * scale and error(changed) < before:
        state.update(changed)


def _taken(sequence: Tensor) -> Tensor:
    """Which samples of a sequence (steps, batch, features) are regressed on; the others are held out."""
    return torch.arange(sequence.shape[1], device=sequence.device) % _HELD_OUT != _HELD_OUT - 1
