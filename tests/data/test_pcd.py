"""PCD: headers, fields and compression."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from cloud_files import lzf, pcd, put, read_or_refuse
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ewa3d.data.io import read_cloud
from ewa3d.data.pcd import unpack_lzf


def test_normals(tmp_path):
    fields = (
        "FIELDS x y z normal_x normal_y normal_z\nSIZE 4 4 4 4 4 4\nTYPE F F F F F F\nWIDTH 1\nHEIGHT 1\nDATA ascii\n"
    )
    cloud = read_cloud(put(tmp_path / "a.pcd", f"{fields}5 6 7 0 1 0\n".encode()))
    assert cloud.points.tolist() == [[5, 6, 7]] and cloud.normals.tolist() == [[0, 1, 0]]


@given(
    header=st.dictionaries(
        st.sampled_from(["VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "POINTS"]),
        st.lists(st.sampled_from(["x", "y", "z", "label", "4", "8", "1", "0", "2", "F", "U", "I", "-3"]), max_size=5)
        .map(" ".join),
    ),
    kind=st.sampled_from(["ascii", "binary", "binary_compressed", "else"]),
    body=st.binary(max_size=300),
)  # fmt: skip
def test_pcd_headers_of_any_kind(header, kind, body):
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(f"{key} {value}\n" for key, value in {"FIELDS": "x y z", "SIZE": "4 4 4", "TYPE": "F F F",
                        "WIDTH": "2", "HEIGHT": "1", **header, "DATA": kind}.items())  # fmt: skip
        read_or_refuse(Path(folder) / "a.pcd", lines.encode() + body)


@given(
    points=hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements={"allow_subnormal": True}),
    kind=st.sampled_from(["ascii", "binary", "binary_compressed"]),
)
def test_pcd_gives_back_what_was_written(points, kind):
    if not np.isfinite(points).all(axis=1).any():
        points[0] = 0
    with tempfile.TemporaryDirectory() as folder:
        read = read_cloud(put(Path(folder) / "a.pcd", pcd(kind, points, np.arange(len(points)))))
    np.testing.assert_array_equal(read.points, points)
    np.testing.assert_array_equal(read.labels, np.arange(len(points)))


@given(st.binary(max_size=400), st.integers(0, 40))
@example(b"ab" * 500, 0)
@example(b"\0" * 9000 + b"xyz" + b"\0" * 9000 + b"xyz", 0)
@example(bytes(range(256)) * 40, 0)
def test_lzf_unpacks_what_was_packed(data, repeats):
    data += data[:30] * repeats
    packed = lzf(data)
    assert unpack_lzf(packed, len(data)) == data
    for wrong in (len(data) - 1, len(data) + 1):
        with pytest.raises(ValueError, match="damaged"):
            unpack_lzf(packed, wrong)
    assert len(data) < 1000 or len(packed) < 0.5 * len(data)
