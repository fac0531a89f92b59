r"""Ridge regression of every layer on what the parents compute: a barycenter in function space.

For a layer with inputs x of the fused network, and target :math:`y = \sum_i \lambda_i y^i` of the parents' aligned outputs,

.. math:: \min_{W, b} \sum_x \|y - W x - b\|^2 + \rho \|W - \bar W\|^2, \qquad \rho = r \cdot \operatorname{tr}(G) / k

with the averaged weights :math:`\bar W` and the Gram matrix G of the k inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from ..alignment import AlignedParents
from ..exceptions import FusionError
from ..execution import Runner
from ..execution.affine import AffineLayer
from ..execution.cells import Cell, GateBlock, Sequences, levels
from ..execution.lockstep import SiteSamples, run_in_lockstep
from ..execution.parent_runner import HELD_OUT
from ..execution.sites import RegressionSite, regression_sites
from .base import Correction

__all__ = ["Regression"]

_ROUNDS = 2
"""Regressions of a layer that a ReLU follows, each on what the one before has left."""

_EQUAL = 1e-9
"""Residuals of this share of the target's squares are rounding."""


class _Ridge:
    """A ridge regression that is factorised once, for any residuals: in the inputs, or in the rows where these are fewer.

    Parameters
    ----------
    x : Tensor of shape (groups, rows, inputs)
        Is centred in place where an offset is fitted, since it may be large.
    ridge : float
    centred : bool
        Whether an offset is fitted.
    """

    def __init__(self, x: Tensor, ridge: float, *, centred: bool):
        self.mean = x.mean(1, keepdim=True) if centred else torch.zeros_like(x[:, :1])
        self.x, self.centred, self.dual = x.sub_(self.mean) if centred else x, centred, x.shape[1] < x.shape[2]
        gram = (self.x @ self.x.mT if self.dual else self.x.mT @ self.x).double()
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal += ridge * diagonal.sum(1, keepdim=True) / x.shape[2]
        diagonal[diagonal <= 0] = 1.0  # inputs that are always 0
        self.factor = torch.linalg.cholesky_ex(gram).L

    def solve(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """The changes of matrix (groups, outputs, inputs) and offset (groups, outputs) that explain residuals.

        Parameters
        ----------
        e : Tensor of shape (groups, rows, outputs)
        """
        mean = e.mean(1, keepdim=True) if self.centred else torch.zeros_like(e[:, :1])
        if self.dual:
            change = torch.cholesky_solve((e - mean).double(), self.factor).mT.to(e) @ self.x
        else:
            change = torch.cholesky_solve((self.x.mT @ (e - mean)).double(), self.factor).mT.to(e)
        return change, (mean - self.mean @ change.mT)[:, 0]

    def explained(self, change: Tensor, shift: Tensor) -> Tensor:
        """What changes explain on the rows, shape (rows, channels)."""
        return _outputs(self.x, change, shift + (self.mean @ change.mT)[:, 0])

    def moments(self, inputs: slice, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of what a matrix makes of some of the inputs, shape (groups, outputs)."""
        outputs = self.x[:, :, inputs] @ matrix.mT
        return outputs.mean(1) + (self.mean[:, :, inputs] @ matrix.mT)[:, 0], outputs.var(1, correction=0)


class Regression(Correction):
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

    uses_mixtures = True
    """Few rows leave weights undetermined."""

    _parameter_constraints: ClassVar[dict] = {
        "ridge": [Interval(Real, 0, None, closed="neither")],
        "max_rows": [Interval(Integral, 10, None, closed="left")],
    }

    def __init__(self, ridge: float = 0.03, *, max_rows: int = 20000):
        self.ridge = ridge
        self.max_rows = max_rows

    def correct(self, fused: Runner, parents: AlignedParents) -> dict[str, Tensor]:
        """Regress all layers.

        Parameters
        ----------
        fused : Steps
            At its start; `state` is changed.
        parents : AlignedParents
            They record at most `max_rows` positions of a value.

        Returns
        -------
        dict of str to Tensor
            The changed state.

        Raises
        ------
        FusionError
            If there are fewer than 5 samples.
        """
        samples = _samples(fused)
        if samples is not None and samples < HELD_OUT:
            raise FusionError(f"A regression needs at least {HELD_OUT} samples. Got {samples}.")

        def correct(site: RegressionSite) -> None:
            if site.cells:
                _regress_layer(site, fused, parents, self)
            if site.layers:
                _regress(SiteSamples(site, fused, parents), self.ridge)

        run_in_lockstep(fused, parents, regression_sites(fused.nodes, fused.parameters), correct)
        return fused.state


def _samples(runner: Runner) -> int | None:
    """How many samples there are, if an input is a tensor with a batch dimension."""
    held = [runner.values[node] for node in runner.inputs if node in runner.values]
    sizes = [sum(len(v) for v in values) for values in held if isinstance(values[0], Tensor) and values[0].dim()]
    return sizes[0] if sizes else None


def _regress(rows: SiteSamples, ridge: float) -> None:
    """All layers of an equation together; layers in groups one after the other."""
    state, layers = rows.fused.state, rows.site.layers
    several = len(layers) > 1 and any(len(w.matrix(state[w.weight])) > 1 for w in layers)
    for own in [[w] for w in layers] if several else [layers]:
        _regress_layers(rows, own, ridge)


def _regress_layers(rows: SiteSamples, layers: Sequence[AffineLayer], ridge: float) -> None:
    """Change some layers of an equation, the others as they are, so that less of its residuals is left."""
    state, maps = rows.fused.state, {w: w.affine(rows.fused.state) for w in rows.site.layers}
    bears = next((w for w in layers if w.has_offset), None)
    fitted, held = (_Half(rows, layers, maps, out=out) for out in (False, True))
    if held.error() <= _EQUAL * held.scale:
        return
    solver = _Ridge(fitted.x, ridge, centred=bears is not None)
    change: Any = 0.0
    shift: Any = 0.0
    for _ in range(_ROUNDS if rows.rectified else 1):
        before, found = held.error(), solver.solve(fitted.in_groups)
        moved = _outputs(held.x, *found)
        step = _step(held.residuals, moved)
        held.move(step * moved)
        if not held.error() < before:
            break
        found = step * found[0], step * found[1]
        fitted.move(solver.explained(*found))
        change, shift = change + found[0], shift + found[1]
    at = 0
    for w in layers if isinstance(change, Tensor) else ():
        matrix, offset = maps[w]
        cut = slice(at, at + matrix.shape[2])
        matrix, moments = matrix + change[:, :, cut], tuple[Tensor, ...]()
        if w.norm is not None and len(maps) == 1 and not rows.others:
            moments = _moments_of(fitted.own, offset + shift)
        elif w.norm is not None:
            moments = solver.moments(cut, matrix)
        w.write(state, matrix, offset + shift if w is bears else offset, *moments)
        at = cut.stop


class _Half:
    """The rows that an equation is fitted on, or those that are held out: inputs, targets and what the layers compute so far.

    Attributes
    ----------
    x : Tensor of shape (groups, rows, inputs)
        Of the layers that are to change.
    own : Tensor of shape (rows, channels)
        What the layers compute.
    residuals : Tensor of shape (rows, channels)
    scale : float
        Squares of the target.
    """

    def __init__(
        self, rows: SiteSamples, layers: Sequence[AffineLayer], maps: Mapping[AffineLayer, tuple[Tensor, Tensor]], *, out: bool
    ):
        inputs, targets, owns = [], [], []
        for batch in range(rows.fused.n_batches):
            taken = (rows.sample[batch] % HELD_OUT == HELD_OUT - 1) == out
            read = {w: rows.inputs(w, batch, taken) for w in maps}
            target, rest = rows.target(batch, taken)
            own = torch.stack([_outputs(read[w], *maps[w]) for w in maps]).sum(0)
            if rows.rectified:  # how far below 0 the sum is does not matter
                target, own = (target + rest).relu(), own + rest
            inputs.append(torch.cat([read[w] for w in layers], 2))
            targets.append(target)
            owns.append(own)
        self.x, self.target, self.own, self.rectified = torch.cat(inputs, 1), torch.cat(targets), torch.cat(owns), rows.rectified
        self.scale = float(self.target.square().sum(dtype=torch.float64))
        self._compare()

    def _compare(self) -> None:
        now = torch.where(self.target > 0, self.own, self.own.relu()) if self.rectified else self.own
        self.residuals = self.target - now

    @property
    def in_groups(self) -> Tensor:
        """The residuals of shape (groups, rows, outputs)."""
        return self.residuals.unflatten(1, (len(self.x), -1)).transpose(0, 1)

    def error(self) -> float:
        """Squares of the residuals."""
        return float(self.residuals.square().sum(dtype=torch.float64))

    def move(self, moved: Tensor) -> None:
        """Change what the layers compute."""
        self.own = self.own + moved
        self._compare()


def _moments_of(outputs: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of outputs without an offset of shape (groups, outputs per group)."""
    return outputs.mean(0).view(offset.shape) - offset, outputs.var(0, correction=0).view(offset.shape)


def _outputs(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """What rows (groups, rows, inputs) are mapped to, shape (rows, channels)."""
    return torch.baddbmm(offset[:, None], x, matrix.mT).transpose(0, 1).flatten(1)


def _step(residuals: Tensor, change: Tensor) -> float:
    """How much of a change lowers residuals most, from 0 to 1."""
    along, length = float((residuals * change).sum(dtype=torch.float64)), float(change.square().sum(dtype=torch.float64))
    return min(max(along / length, 0.0), 1.0) if length > 0 else 0.0


def _regress_layer(site: RegressionSite, fused: Runner, parents: AlignedParents, options: Regression) -> None:
    """Regress the cells of a recurrent layer, level by level."""
    at = fused.position[site.at]
    theirs = [Sequences(p.recording.nodes[p.position(at)], p.recording) for p in parents]
    own = Sequences(site.at, fused)
    for level in levels(site.cells):
        few, others = own.cut(options.max_rows), [s.cut(options.max_rows) for s in theirs]
        for cell in level:
            _regress_cell(cell, few, parents, others, options.ridge)
        for sequences in (own, *theirs):
            sequences.advance(level)


def _regress_cell(cell: Cell, own: Sequences, parents: AlignedParents, theirs: Sequence[Sequences], ridge: float) -> None:
    """Regress the gates of one cell; the solution is kept if the states come closer.

    The regression is forced with the states that the parents' mean gates lead to. The mean states would not do: they are not
    what the mean gates lead to.
    """
    state, inputs, labelled = own.state, own.read(cell), ((cell.w_ih, 0), (cell.w_hh, 0))
    of_batches = []
    for parent, sequences in zip(parents, theirs, strict=True):
        halves = [zip(cell.halves(sequences.state, x, h), labelled, strict=True) for x, h in sequences.forced(cell)]
        of_batches.append([cell.gates(*(parent.carried(half, at) for half, at in both)) for both in halves])
    gates = list(map(parents.mixture.mean, zip(*of_batches, strict=True)))
    wanted = [cell.states(state, g, start) for g, start in zip(gates, own.initial, strict=True)]
    pairs: dict[GateBlock, list[tuple[Tensor, Tensor]]] = {}
    taken = _taken(inputs)
    for x, g, states, start, own_taken in zip(inputs, gates, wanted, own.initial, taken, strict=True):
        h = cell.before(states, start)
        e = g - cell.gates(*cell.halves(state, x, h))
        for part in cell.parts(g.shape[-1]):
            read = [t[:, own_taken].flatten(0, 1) for t, is_read in ((x, part.reads_input), (h, part.reads_state)) if is_read]
            pairs.setdefault(part, []).append((torch.cat(read, 1), e[:, own_taken, part.rows].flatten(0, 1)))
    changed = dict(state)
    for part, found in pairs.items():
        x, e = (torch.cat(tensors)[None] for tensors in zip(*found, strict=True))
        matrix, offset = _Ridge(x, ridge, centred=cell.b_ih is not None).solve(e)
        cell.change(changed, part, matrix[0], offset[0])

    few = all(bool(t.all()) for t in taken)  # nothing is held out

    def error(state: Mapping[str, Tensor]) -> float:
        runs = zip(own.run(cell, state), wanted, taken, strict=True)
        return sum(float((r - h)[:, ~t | few].square().sum(dtype=torch.float64)) for r, h, t in runs)

    before, scale = error(state), sum(float(h.square().sum(dtype=torch.float64)) for h in wanted)
    if before > _EQUAL * scale and error(changed) < before:
        state.update(changed)


def _taken(sequences: Sequence[Tensor]) -> list[Tensor]:
    """Which samples of batches of sequences (steps, batch, features) are regressed on; the others are held out."""
    sizes = [x.shape[1] for x in sequences]
    taken = torch.arange(sum(sizes), device=sequences[0].device) % HELD_OUT != HELD_OUT - 1
    return list(taken.split(sizes))
