r"""Ridge regression of every layer on the parents' activations, a barycenter in function space.

For a layer with inputs x of the fused network, and target :math:`y = \sum_i \lambda_i y^i` of the parents' aligned outputs,

.. math:: \min_{W, b} \sum_x \|y - W x - b\|^2 + \rho \|W - \bar W\|^2, \qquad \rho = r \cdot \operatorname{tr}(G) / k

with the averaged weights :math:`\bar W` and the Gram matrix G of the k inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import ClassVar

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
from ..network.types import State
from .base import Correction

__all__ = ["Regression"]

_ROUNDS = 2
"""Number of regressions of a layer before a ReLU, each on the residuals of the one before."""

_EQUAL = 1e-9
"""Squared residuals, relative to the squared target, that count as rounding errors."""


class _Ridge:
    """A ridge regression that is factorised once for any residuals, over the inputs or, if they are fewer, over the rows.

    Parameters
    ----------
    x : Tensor of shape (groups, rows, inputs)
        Centred in place if an offset is fitted, since it may be large.
    ridge : float
    centred : bool
        Whether to fit an offset.
    """

    def __init__(self, x: Tensor, ridge: float, *, centred: bool):
        self.mean = x.mean(1, keepdim=True) if centred else torch.zeros_like(x[:, :1])
        self.x, self.centred, self.dual = x.sub_(self.mean) if centred else x, centred, x.shape[1] < x.shape[2]
        gram = (self.x @ self.x.mT if self.dual else self.x.mT @ self.x).double()
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal += ridge * diagonal.sum(1, keepdim=True) / x.shape[2]
        diagonal[diagonal <= 0] = 1.0  # of inputs that are always 0
        self.factor = torch.linalg.cholesky_ex(gram).L

    def solve(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changes of matrix (groups, outputs, inputs) and offset (groups, outputs) that explain residuals.

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
        """Return the part of the residuals that changes explain, of shape (rows, channels)."""
        return _outputs(self.x, change, shift + (self.mean @ change.mT)[:, 0])

    def moments(self, inputs: slice, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the products of a matrix with some of the inputs, of shape (groups, outputs)."""
        outputs = self.x[:, :, inputs] @ matrix.mT
        return outputs.mean(1) + (self.mean[:, :, inputs] @ matrix.mT)[:, 0], outputs.var(1, correction=0)


class Regression(Correction):
    r"""Regress every layer of a fused network, in order, on the weighted mean of its parents' aligned outputs.

    The layers of one sum are regressed together, and batch norms are part of the layer before them. The gates of a recurrent
    layer are regressed on input and state, with the states that follow from the mean gates. Weights that several operations
    share are unchanged, and no layer gains a bias. A fifth of the samples is held out; on it the step of each layer from the
    averaged weights to the solution is chosen, and no step is taken if the error does not fall.

    Parameters
    ----------
    ridge : float, default=0.03
        :math:`r`, the weight of the distance to the averaged weights, relative to the mean square of an input.
    max_rows : int, default=20000
        Largest number of rows of one regression; positions of convolutions and sequences are subsampled.

    Examples
    --------
    >>> import torch
    >>> from sklearn_wbfuse import WassersteinFusion
    >>> from sklearn_wbfuse.datasets import MLP
    >>> parents = [MLP([4, 8, 2]), MLP([4, 8, 2])]
    >>> fusion = WassersteinFusion(correction=Regression(ridge=0.1), probe="noise", random_state=0).fit(parents)
    """

    uses_mixtures = True
    """True, since few rows leave weights undetermined."""

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
        fused : Runner
            The fused network; tensors of its `state` are replaced.
        parents : AlignedParents
            The parents, recorded at up to `max_rows` positions of a value.

        Returns
        -------
        dict of str to Tensor
            The state of `fused`.

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
                _regress_recurrent(site, fused, parents, self)
            if site.layers:
                _regress(SiteSamples(site, fused, parents), self.ridge)

        run_in_lockstep(fused, parents, regression_sites(fused.nodes, fused.parameters), correct)
        return fused.state


def _samples(runner: Runner) -> int | None:
    """Return the number of samples, if an input is a tensor with a batch dimension."""
    inputs = [runner.values[node] for node in runner.inputs if node in runner.values]
    sizes = [sum(len(v) for v in values) for values in inputs if isinstance(values[0], Tensor) and values[0].dim()]
    return sizes[0] if sizes else None


def _regress(samples: SiteSamples, ridge: float) -> None:
    """Regress all layers of a site together, or one after another if any of them is in groups."""
    state, layers = samples.fused.state, samples.site.layers
    in_turns = len(layers) > 1 and any(len(layer.matrix(state[layer.weight])) > 1 for layer in layers)
    for together in [[layer] for layer in layers] if in_turns else [layers]:
        _regress_layers(samples, together, ridge)


def _regress_layers(samples: SiteSamples, layers: Sequence[AffineLayer], ridge: float) -> None:
    """Change some layers of a site, with its other layers fixed, to reduce the residuals."""
    state, maps = samples.fused.state, {layer: layer.affine(samples.fused.state) for layer in samples.site.layers}
    with_offset = next((layer for layer in layers if layer.has_offset), None)
    fitted, held_out = (_Split(samples, layers, maps, held_out=held_out) for held_out in (False, True))
    if held_out.error() <= _EQUAL * held_out.scale:
        return
    solver = _Ridge(fitted.x, ridge, centred=with_offset is not None)
    change: Tensor | float = 0.0
    shift: Tensor | float = 0.0
    for _ in range(_ROUNDS if samples.rectified else 1):
        previous, (matrix_step, offset_step) = held_out.error(), solver.solve(fitted.in_groups)
        output_change = _outputs(held_out.x, matrix_step, offset_step)
        length = _step_length(held_out.residuals, output_change)
        held_out.add(length * output_change)
        if not held_out.error() < previous:
            break
        matrix_step, offset_step = length * matrix_step, length * offset_step
        fitted.add(solver.explained(matrix_step, offset_step))
        change, shift = change + matrix_step, shift + offset_step
    if not isinstance(change, Tensor):
        return
    column = 0
    for layer in layers:
        matrix, offset = maps[layer]
        columns = slice(column, column + matrix.shape[2])
        matrix, moments = matrix + change[:, :, columns], tuple[Tensor, ...]()
        if layer.norm is not None and len(maps) == 1 and not samples.others:
            moments = _moments_of(fitted.outputs, offset + shift)
        elif layer.norm is not None:
            moments = solver.moments(columns, matrix)
        layer.write(state, matrix, offset + shift if layer is with_offset else offset, *moments)
        column = columns.stop


class _Split:
    """The samples that a site is fitted on, or those that are held out.

    Attributes
    ----------
    x : Tensor of shape (groups, rows, inputs)
        The inputs of the layers to change.
    outputs : Tensor of shape (rows, channels)
        The present outputs of all layers of the site.
    residuals : Tensor of shape (rows, channels)
    scale : float
        The sum of squares of the target.
    """

    def __init__(
        self,
        samples: SiteSamples,
        layers: Sequence[AffineLayer],
        maps: Mapping[AffineLayer, tuple[Tensor, Tensor]],
        *,
        held_out: bool,
    ):
        x, targets, outputs = [], [], []
        for batch in range(samples.fused.n_batches):
            subset = (samples.sample[batch] % HELD_OUT == HELD_OUT - 1) == held_out
            inputs = {layer: samples.inputs(layer, batch, subset) for layer in maps}
            target, rest = samples.target(batch, subset)
            output = torch.stack([_outputs(inputs[layer], *maps[layer]) for layer in maps]).sum(0)
            if samples.rectified:  # negative sums need not be matched, only be negative
                target, output = (target + rest).relu(), output + rest
            x.append(torch.cat([inputs[layer] for layer in layers], 2))
            targets.append(target)
            outputs.append(output)
        self.x, self.target, self.outputs = torch.cat(x, 1), torch.cat(targets), torch.cat(outputs)
        self.rectified = samples.rectified
        self.scale = float(self.target.square().sum(dtype=torch.float64))
        self._update_residuals()

    def _update_residuals(self) -> None:
        rectified = torch.where(self.target > 0, self.outputs, self.outputs.relu()) if self.rectified else self.outputs
        self.residuals = self.target - rectified

    @property
    def in_groups(self) -> Tensor:
        """The residuals, of shape (groups, rows, outputs)."""
        return self.residuals.unflatten(1, (len(self.x), -1)).transpose(0, 1)

    def error(self) -> float:
        """Return the sum of squared residuals."""
        return float(self.residuals.square().sum(dtype=torch.float64))

    def add(self, change: Tensor) -> None:
        """Add a change to the outputs of the layers."""
        self.outputs = self.outputs + change
        self._update_residuals()


def _moments_of(outputs: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of outputs after subtracting an offset of shape (groups, outputs per group)."""
    return outputs.mean(0).view(offset.shape) - offset, outputs.var(0, correction=0).view(offset.shape)


def _outputs(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Apply an affine map to rows (groups, rows, inputs); return outputs of shape (rows, channels)."""
    return torch.baddbmm(offset[:, None], x, matrix.mT).transpose(0, 1).flatten(1)


def _step_length(residuals: Tensor, change: Tensor) -> float:
    """Return the multiple of a change, from 0 to 1, that reduces the residuals most."""
    product, square = float((residuals * change).sum(dtype=torch.float64)), float(change.square().sum(dtype=torch.float64))
    return min(max(product / square, 0.0), 1.0) if square > 0 else 0.0


def _regress_recurrent(site: RegressionSite, fused: Runner, parents: AlignedParents, options: Regression) -> None:
    """Regress the cells of a recurrent layer, level by level."""
    position = fused.position[site.node]
    of_fused = Sequences(site.node, fused)
    of_parents = [Sequences(p.recording.nodes[p.position(position)], p.recording) for p in parents]
    for level in levels(site.cells):
        fused_cut, parents_cut = of_fused.cut(options.max_rows), [s.cut(options.max_rows) for s in of_parents]
        for cell in level:
            _regress_cell(cell, fused_cut, parents, parents_cut, options.ridge)
        for sequences in (of_fused, *of_parents):
            sequences.advance(level)


def _regress_cell(cell: Cell, fused: Sequences, parents: AlignedParents, of_parents: Sequence[Sequences], ridge: float) -> None:
    """Regress the gates of one cell; accept the solution if it reduces the error of the states.

    The inputs are the states that follow from the parents' mean gates. The parents' mean states would be inconsistent with
    these gates.
    """
    state, inputs, axes = fused.state, fused.read(cell), ((cell.w_ih, 0), (cell.w_hh, 0))
    gates_of_parents = []
    for parent, sequences in zip(parents, of_parents, strict=True):
        halves = [zip(cell.halves(sequences.state, x, h), axes, strict=True) for x, h in sequences.forced(cell)]
        gates_of_parents.append([cell.gates(*(parent.carried(half, axis) for half, axis in pair)) for pair in halves])
    gates = list(map(parents.mixture.mean, zip(*gates_of_parents, strict=True)))
    targets = [cell.states(state, g, start) for g, start in zip(gates, fused.initial, strict=True)]
    pairs: dict[GateBlock, list[tuple[Tensor, Tensor]]] = {}
    fitted = _fitted(inputs)
    for x, g, states, start, mask in zip(inputs, gates, targets, fused.initial, fitted, strict=True):
        h = cell.before(states, start)
        residuals = g - cell.gates(*cell.halves(state, x, h))
        for block in cell.blocks(g.shape[-1]):
            read = [t[:, mask].flatten(0, 1) for t, is_read in ((x, block.reads_input), (h, block.reads_state)) if is_read]
            pairs.setdefault(block, []).append((torch.cat(read, 1), residuals[:, mask, block.rows].flatten(0, 1)))
    changed = dict(state)
    for block, of_batches in pairs.items():
        x, residuals = (torch.cat(tensors)[None] for tensors in zip(*of_batches, strict=True))
        matrix, offset = _Ridge(x, ridge, centred=cell.b_ih is not None).solve(residuals)
        cell.change(changed, block, matrix[0], offset[0])

    none_held_out = all(bool(mask.all()) for mask in fitted)

    def error(state: State) -> float:
        runs = zip(fused.run(cell, state), targets, fitted, strict=True)
        return sum(float((r - h)[:, ~mask | none_held_out].square().sum(dtype=torch.float64)) for r, h, mask in runs)

    previous, scale = error(state), sum(float(h.square().sum(dtype=torch.float64)) for h in targets)
    if previous > _EQUAL * scale and error(changed) < previous:
        state.update(changed)


def _fitted(sequences: Sequence[Tensor]) -> list[Tensor]:
    """Return masks of the samples of batches of sequences (steps, batch, features) to fit on; the others are held out."""
    sizes = [x.shape[1] for x in sequences]
    mask = torch.arange(sum(sizes), device=sequences[0].device) % HELD_OUT != HELD_OUT - 1
    return list(mask.split(sizes))
