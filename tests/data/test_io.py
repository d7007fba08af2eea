"""Clouds and meshes in files: the same points from every kind."""

from pathlib import Path

import numpy as np
import pytest
from cloud_files import (
    BOX,
    DRAW,
    LABELLED,
    LABELS,
    MIXED,
    POINTS,
    SIDES,
    TEXTS,
    TRIANGLES,
    array,
    box_ply,
    obj,
    off,
    pcd,
    ply,
    put,
    refused,
    rich_obj,
    stl,
    text,
)

from ewa3d.data.io import find_clouds, read_cloud, write_labelled_ply
from ewa3d.errors import Ewa3dError

# Every kind


@pytest.mark.parametrize("name", [*TEXTS, *LABELLED])
def test_every_kind_of_file_holds_the_same_points(name, tmp_path):
    cloud = read_cloud(put(tmp_path / name, (TEXTS | LABELLED)[name]))
    assert cloud.points.dtype == np.float64 and not cloud.is_mesh
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert (cloud.labels is not None) == (name in LABELLED)
    if name in LABELLED:
        np.testing.assert_array_equal(cloud.labels, LABELS)


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "i2"])
@pytest.mark.parametrize("kind", ["npy", "npz", "h5"])
def test_arrays_of_any_type(kind, dtype, tmp_path):
    points = (100 * POINTS).astype(dtype)
    wide = np.concatenate([points, points], axis=1)
    for values in (points, wide, np.asfortranarray(points)):
        read = read_cloud(array(kind, tmp_path / f"a.{kind}", points=values))
        np.testing.assert_array_equal(read.points, points.astype(np.float64))


def test_arrays_by_their_names(tmp_path):
    more = {"label": LABELS, "other": np.zeros(3), "normals": -POINTS}
    for name in ("points", "data", "xyz"):
        cloud = read_cloud(array("npz", tmp_path / "a.npz", **more, **{name: POINTS}))
        np.testing.assert_array_equal(cloud.points, POINTS)
        np.testing.assert_array_equal(cloud.labels, LABELS)
        np.testing.assert_array_equal(cloud.normals, -POINTS)
    np.testing.assert_array_equal(read_cloud(array("npz", tmp_path / "b.npz", x=POINTS)).points, POINTS)
    one_label = read_cloud(array("npz", tmp_path / "c.npz", points=POINTS, label=np.array([3]), part=LABELS))
    np.testing.assert_array_equal(one_label.labels, LABELS)
    refused(array("npz", tmp_path / "d.npz", a=POINTS, b=POINTS), "its arrays are a, b; the points should be 'points'")
    refused(array("h5", tmp_path / "d.h5", a=POINTS), "it has no dataset 'points' or 'data'")


def test_one_of_many_clouds_of_a_file(tmp_path):
    clouds = np.stack([POINTS + i for i in range(4)])
    path = array("h5", tmp_path / "many.h5", data=clouds)
    for row in range(4):
        cloud = read_cloud(f"{path}:{row}")
        np.testing.assert_array_equal(cloud.points, clouds[row])
        assert cloud.siblings == 4
    np.testing.assert_array_equal(read_cloud(path).points, clouds[0])
    refused(f"{path}:4", "row 4 of 4 clouds, which count from 0")
    refused(f"{array('h5', tmp_path / 'one.h5', data=POINTS)}:0", "it holds a single cloud")


def test_coordinates_of_a_map_lose_nothing(tmp_path):
    points = np.array([[500_000.123456, 5_400_000.654321, 312.5], [500_000.123457, 5_400_000.654322, 312.5]])
    files = [put(tmp_path / "a.xyz", text(points)), array("npy", tmp_path / "a.npy", points=points)]
    write_labelled_ply(tmp_path / "a.ply", points, [0, 1], np.zeros((2, 3)))
    for file in [*files, tmp_path / "a.ply"]:
        np.testing.assert_array_equal(read_cloud(file).points, points)


def test_rows_that_are_not_finite_are_there(tmp_path):
    points = np.array([[1, 2, 3], [np.nan, 0, 0], [0, np.inf, 0]], dtype=np.float32)
    for name, content in (
        ("a.ply", ply("ascii", points, LABELS[:3])),
        ("b.ply", ply("binary_little_endian", points, LABELS[:3])),
        ("a.pcd", pcd("ascii", points, LABELS[:3])),
        ("b.pcd", pcd("binary", points, LABELS[:3])),
        ("a.txt", text(points)),
    ):
        np.testing.assert_array_equal(read_cloud(put(tmp_path / name, content)).points, points)
    refused(put(tmp_path / "c.txt", text(points[1:])), "none of its points is finite")


@pytest.mark.parametrize("kind", ["ascii", "binary", "binary_compressed"])
def test_what_open3d_writes(kind, tmp_path):
    o3d = pytest.importorskip("open3d", exc_type=ImportError)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(POINTS))
    cloud.normals = o3d.utility.Vector3dVector(POINTS[::-1])
    ways = {"write_ascii": kind == "ascii", "compressed": kind == "binary_compressed"}
    for suffix in ("pcd", "ply"):
        path = tmp_path / f"a.{suffix}"
        assert o3d.io.write_point_cloud(str(path), cloud, **ways)
        read = read_cloud(path)
        np.testing.assert_allclose(read.points, POINTS, rtol=0, atol=1e-5)  # its text has six digits
        np.testing.assert_allclose(read.normals, POINTS[::-1], rtol=0, atol=1e-5)


# Meshes


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("off", off()),
        ("off", off(head="OFF")),  # as in ModelNet40: the counts on the same line
        ("off", off(faces=TRIANGLES, head="# made\nOFF\n\n")),
        ("off", off(faces=MIXED)),
        ("obj", obj()),
        ("obj", obj(faces=MIXED)),
        ("obj", rich_obj()),
        ("stl", stl(binary=True)),
        ("stl", stl(binary=False)),
        *(("ply", box_ply(form, faces)) for form in ("ascii", "binary_little_endian", "binary_big_endian")
          for faces in (SIDES, TRIANGLES, MIXED)),
        ("ply", box_ply("ascii", SIDES, index="vertex_index")),
    ],
)  # fmt: skip
def test_meshes_are_sampled_by_area(suffix, content, tmp_path):
    """A box of 10 × 1 × 1: its four long sides are 40 of 42 of the surface, its ends one each."""
    path = put(tmp_path / f"box.{suffix}", content)
    cloud = read_cloud(path, mesh_points=20_000)
    assert cloud.is_mesh and cloud.points.shape == cloud.normals.shape == (20_000, 3)
    x, y, z = cloud.points.T
    assert x.min() >= 0 and x.max() <= 10 and min(y.min(), z.min()) >= 0 and max(y.max(), z.max()) <= 1
    on = [np.isclose(x, 0), np.isclose(x, 10), np.isclose(y, 0), np.isclose(y, 1), np.isclose(z, 0), np.isclose(z, 1)]
    assert np.any(on, axis=0).all()
    shares = np.mean(on, axis=1) * 42
    np.testing.assert_allclose(shares, [1, 1, 10, 10, 10, 10], rtol=0.15)
    along = np.histogram(x[on[2] & ~on[0] & ~on[1]], bins=5, range=(0, 10))[0]
    assert along.min() > 0.85 * along.mean()  # and evenly within a face
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1)
    assert np.allclose(np.abs(cloud.normals[on[2] & ~on[0] & ~on[1] & ~on[4] & ~on[5]]), [0, 1, 0])


def test_sampling_is_seeded(tmp_path):
    path = put(tmp_path / "box.off", off())
    first, again, other = (read_cloud(path, seed=seed).points for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (10_000, 3) and (first != other).any()


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
def test_meshes_of_any_size(scale, tmp_path):
    points = [[scale * x for x in row] for row in BOX]
    cloud = read_cloud(put(tmp_path / "box.off", off(points)))
    assert np.mean(cloud.points[:, 0] < 0.25 * scale * 10) == pytest.approx(0.25, abs=0.03)


def test_files_of_meshes_without_faces_are_clouds(tmp_path):
    for name, content in (("a.off", off(faces=[])), ("a.obj", obj(faces=[])), ("a.ply", box_ply("ascii", []))):
        cloud = read_cloud(put(tmp_path / name, content))
        assert not cloud.is_mesh
        np.testing.assert_array_equal(cloud.points, BOX)


# Writing


def test_a_labelled_ply_comes_back_whole_and_trimesh_reads_it(tmp_path):
    import trimesh

    colors = DRAW.integers(0, 256, (60, 3), dtype=np.uint8)
    path = tmp_path / "out.ply"
    write_labelled_ply(path, POINTS, LABELS - 1, colors, ["label 0 is leg\nelement vertex 7", "part é"])
    cloud = read_cloud(path)
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_array_equal(cloud.labels, LABELS - 1)
    assert path.stat().st_size < 60 * 19 + 400  # floats, since nothing is lost by it
    theirs = trimesh.load(path)
    np.testing.assert_array_equal(theirs.vertices, POINTS)
    np.testing.assert_array_equal(theirs.colors[:, :3], colors)
    assert [file.name for file in tmp_path.iterdir()] == ["out.ply"]


def test_what_is_not_finite_is_written_too(tmp_path):
    points = np.array([[np.nan, 1, 2], [np.inf, 1, 2], [3, 4, 1e300]])
    write_labelled_ply(tmp_path / "a.ply", points, [-1, -1, 0], np.zeros((3, 3)))
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply").points, points)


# Finding


def test_folders_and_globs(tmp_path):
    for name in ("b.ply", "a.XYZ", "sub/c.off", "readme.md", ".hidden.ply", "sub/d.npy", "odd[1].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        put(tmp_path / name, b"")

    def found(pattern: str) -> list[str]:
        return [str(Path(file).relative_to(tmp_path)) for file in find_clouds(str(tmp_path / pattern))]

    assert found("") == ["a.XYZ", "b.ply", "odd[1].txt", "sub/c.off", "sub/d.npy"]
    assert found("*.ply") == ["b.ply"] and found("sub") == ["sub/c.off", "sub/d.npy"]
    assert found("**/*.off") == ["sub/c.off"] and found("odd[1].txt") == ["odd[1].txt"]
    assert found("absent.ply") == ["absent.ply"] and found("many.h5:17") == ["many.h5:17"]
    (tmp_path / "none").mkdir()
    for pattern in ("none", "*.las", "none/*"):
        with pytest.raises(Ewa3dError, match="no clouds there: name files, folders or globs of"):
            found(pattern)
