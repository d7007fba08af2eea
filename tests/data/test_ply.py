"""PLY: what other files do not have, properties in any order and lists among them."""

import struct

import pytest
from cloud_files import put

from ewa3d.data.io import read_cloud


def test_normals(tmp_path):
    head = "ply\nformat ascii 1.0\nelement vertex 1\n" + "".join(
        f"property double {name}\n" for name in ("nx", "ny", "nz", "x", "y", "z")
    )
    cloud = read_cloud(put(tmp_path / "a.ply", f"{head}end_header\n0 0 1 5 6 7\n".encode()))
    assert cloud.points.tolist() == [[5, 6, 7]] and cloud.normals.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("is_text", [True, False])
def test_lists_among_the_properties_of_points(is_text, tmp_path):
    head = f"ply\nformat {'ascii' if is_text else 'binary_big_endian'} 1.0\nelement edge 1\nproperty int a\n"
    head += "element vertex 3\nproperty float x\nproperty list uchar short near\nproperty float y\nproperty float z\n"
    rows = [(1.5, [7, 8], 2.5, 3.5), (4.5, [], 5.5, 6.5), (7.5, [9], 8.5, 9.5)]
    body = b"".join(
        f"{x} {len(near)} {' '.join(map(str, near))} {y} {z}\n".encode()
        if is_text
        else struct.pack(f">fB{len(near)}hff", x, len(near), *near, y, z)
        for x, near, y, z in rows
    )
    content = f"{head}end_header\n".encode() + (b"5\n" if is_text else struct.pack(">i", 5)) + body
    cloud = read_cloud(put(tmp_path / "a.ply", content))
    assert cloud.points.tolist() == [[x, y, z] for x, _, y, z in rows]
