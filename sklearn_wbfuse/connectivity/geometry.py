"""Coordinates in the plane through three networks."""

from __future__ import annotations

import numpy as np

from ..exceptions import FusionError

__all__ = ["affine_weights", "plane_coordinates"]


def plane_coordinates(displacements: np.ndarray) -> np.ndarray:
    r"""Return the coordinates of three points in their plane: the first is the origin, the third is on the positive x axis.

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
    if width <= 1e-6 * far or height <= 1e-6 * far:  # the precision of float32
        same = "aligned model 2 is model 1" if width <= 1e-6 * far < far else "the three lie on one line"
        raise FusionError(f"The networks span no plane: {same}. InterpolationDisplay draws the line between two networks.")
    return np.array([[0.0, 0.0], [along, height], [width, 0.0]])


def affine_weights(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the weights, of sum 1, of three corners at points of their plane; corners are as by `plane_coordinates`.

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
