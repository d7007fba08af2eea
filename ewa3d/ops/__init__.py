"""Geometry on batched tensors: float32 inside, whatever the autocast. PyTorch, and Triton kernels where they run."""

from .chamfer import chamfer_distance
from .interpolation import three_nn_interpolate
from .neighbors import gather_points, group, knn
from .sampling import farthest_point_sample

__all__ = ["chamfer_distance", "farthest_point_sample", "gather_points", "group", "knn", "three_nn_interpolate"]
