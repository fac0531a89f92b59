"""Where networks lie: one frame for a network and another one aligned to it, and coordinates in the plane of three."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..barycenter import carry_state
from ..couplings import Coupling
from ..exceptions import FusionError
from ..fusion.base import BaseFusion, _fingerprint
from ..graph import floating_state, write_back

__all__ = ["affine_weights", "aligned_to", "plane_coordinates"]


def aligned_to(fusion: Any, first: nn.Module, second: nn.Module) -> nn.Module:
    r"""A network carried into the neuron order and the scales of a parent of a fusion.

    The fusion carries the parent by a linear map :math:`A_1` and the other network by :math:`A_2`; the result is
    :math:`A_1^{-1} A_2 \theta_2`.

    Parameters
    ----------
    fusion : fitted fusion of this library
    first : Module
        A parent; its coupling must consist of permutations, with signs or without.
    second : Module
        Of equal shapes.

    Raises
    ------
    FusionError
        If `first` is no parent, or :math:`A_1` can't be undone.
    """
    if not isinstance(fusion, BaseFusion):
        raise FusionError(
            f"Needed is a fusion such as WassersteinFusion. Got {type(fusion).__name__}; from_models takes networks."
        )
    check_is_fitted(fusion)
    mark = _fingerprint(first)
    if mark not in fusion._seen:
        raise FusionError("The first network is no parent of the fusion; give networks that it was fitted on, unchanged.")
    position, alignment = fusion._seen.index(mark), fusion._alignment
    couplings, back = alignment.couplings[position], {}
    for name, coupling in couplings.items():
        if coupling.index is None:
            raise FusionError(
                f"Group {name!r} of the first network has a coupling of shape {coupling.shape} that is no permutation and can't "
                "be undone; fit with reg=0 and target widths that are those of the networks."
            )
        index = np.argsort(coupling.index)
        back[name] = Coupling(index=index, signs=None if coupling.signs is None else coupling.signs[index])
    (moved,) = fusion.transform([second])
    own = alignment.source_scales[position]
    state = carry_state(floating_state(moved), fusion.graph_, fusion._graphs[position], back, alignment.target_scales, own)
    return write_back(moved, state, sized=moved)


def plane_coordinates(displacements: np.ndarray) -> np.ndarray:
    r"""Coordinates of three points in their plane: the first is the origin, the third lies on the positive x axis.

    Parameters
    ----------
    displacements : ndarray of shape (3, n)
        The points less the first.

    Returns
    -------
    ndarray of shape (3, 2)
        ``[[0, 0], [<w, u>, |w - <w, u> u|], [|d|, 0]]`` with d and w the third and second row, :math:`u = d / |d|`.

    Raises
    ------
    FusionError
        If the points lie on one line.

    Examples
    --------
    >>> plane_coordinates(np.array([[0, 0, 0], [1, 5, 0], [0, 2, 0]]))
    array([[0., 0.],
           [5., 1.],
           [2., 0.]])
    """
    second, third = displacements[1:]
    width, far = np.linalg.norm(third), np.linalg.norm(second)
    along = second @ third / width if width else 0.0
    height = np.linalg.norm(second - along * third / width) if width else 0.0
    if width <= 1e-6 * far or height <= 1e-6 * far:  # as near as float32 comes
        same = "aligned model 2 is model 1" if width <= 1e-6 * far < far else "the three lie on one line"
        raise FusionError(f"The networks span no plane: {same}. InterpolationDisplay draws the line between two networks.")
    return np.array([[0.0, 0.0], [along, height], [width, 0.0]])


def affine_weights(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Weights, of sum 1, that make up points of the plane of three corners placed as by `plane_coordinates`.

    Examples
    --------
    >>> affine_weights(np.array([[0.0, 0.0], [5.0, 1.0], [2.0, 0.0]]), np.array([[1.0, 0.0], [6.0, 1.0]]))
    array([[ 0.5,  0. ,  0.5],
           [-0.5,  1. ,  0.5]])
    """
    (along, height), (width, _) = corners[1:]
    of_second = points[:, 1] / height
    of_third = (points[:, 0] - of_second * along) / width
    return np.column_stack([1 - of_second - of_third, of_second, of_third])
