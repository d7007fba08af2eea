"""Interpolation of features from few points to many."""

from __future__ import annotations

import torch
from torch import Tensor

from .neighbors import gather_points, knn


@torch.no_grad()
def three_nn_weights(queries: Tensor, points: Tensor) -> Tensor:
    """The matrix of `three_nn_interpolate`: ``(B, N, M)`` float32, in each row at most three weights, of sum 1.

    Args:
        queries: ``(B, N, 3)``.
        points: ``(B, M, 3)``; where M < 3, all of them count.
    """
    index = knn(queries, points, min(3, points.shape[1]))
    squared = (gather_points(points.float(), index) - queries.float().unsqueeze(2)).square().sum(dim=-1)
    # 1 / (d² + 1e-8) but for a factor: optimizers of ONNX graphs take 1e-8 for 0. The bound is met beyond d = 1e11:
    # there the nearest count alike, where an overflow would leave weights of sum 0
    inverse = 1 / ((1e8 * squared).clamp(max=1e30) + 1)
    weights = torch.zeros(*queries.shape[:2], points.shape[1], device=queries.device)
    return weights.scatter_(2, index, inverse / inverse.sum(dim=-1, keepdim=True))


def three_nn_interpolate(queries: Tensor, points: Tensor, features: Tensor) -> Tensor:
    """Carry features to other points: the mean over each query's three nearest, weighted by 1 / (d² + 1e-8).

    The feature propagation of PointNet++ (Qi et al., NeurIPS 2017, section 3.4). It is linear in the features, and
    done as one product with a sparse matrix held dense: for hundreds of points that is faster than gathering three
    rows a query, backwards above all.

    Args:
        queries: ``(B, N, 3)``.
        points: ``(B, M, 3)``, where the features are; where M < 3, all of them count.
        features: ``(B, M, C)``. Differentiable in the features only.

    Returns:
        ``(B, N, C)``, in the features' dtype.

    Example:
        >>> corners = torch.tensor([[[0.0, 0, 0], [2, 0, 0]]])
        >>> three_nn_interpolate(torch.tensor([[[1.0, 0, 0]]]), corners, torch.tensor([[[10.0], [20.0]]]))
        tensor([[[15.]]])
    """
    return three_nn_weights(queries, points).to(features.dtype) @ features
