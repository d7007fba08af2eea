"""Geometry on batched tensors, in pure PyTorch: float32 inside, whatever the autocast."""

from .interpolation import three_nn_interpolate
from .neighbors import gather_points, group, knn
from .sampling import farthest_point_sample

__all__ = ["farthest_point_sample", "gather_points", "group", "knn", "three_nn_interpolate"]
