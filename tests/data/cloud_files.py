"""Files for the tests of the readers, from writers of our own, so that the readers are not tested with themselves."""

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from ewa3d.data.io import Cloud, read_cloud
from ewa3d.errors import Ewa3dError

DRAW = np.random.default_rng(0)
POINTS = np.concatenate([DRAW.standard_normal((40, 3)), np.full((20, 3), 7.25)]).astype(np.float32)
LABELS = np.arange(60) % 5


def text(points=POINTS, separator=" ", head="") -> bytes:
    return (head + "".join(separator.join(repr(float(x)) for x in row) + "\n" for row in points)).encode()


def ply(form: str, points=POINTS, labels=LABELS, faces=(), newline: str = "\n", index="vertex_indices") -> bytes:
    order = ">" if "big" in form else "<"
    lines = ["ply", f"format {form} 1.0", "comment of a tool", f"element vertex {len(points)}", "property uchar red"]
    lines += ["property float x", "property float y", "property float z", "property int label"]
    if faces:
        lines += [f"element face {len(faces)}", f"property list uchar int {index}", "property uchar flag"]
    body = b""
    for row, label in zip(points, labels, strict=True):
        body += struct.pack(f"{order}B3fi", 9, *row, label) if form != "ascii" else b"9 " + text([row])[:-1] + b" "
        body += b"%d\n" % label if form == "ascii" else b""
    for face in faces:
        cells = [len(face), *face, 1]
        body += (" ".join(map(str, cells)) + "\n").encode() if form == "ascii" else struct.pack(
            f"{order}B{len(face)}iB", *cells
        )  # fmt: skip
    return "".join(line + newline for line in [*lines, "end_header"]).encode() + body


def lzf(data: bytes) -> bytes:
    """A plain LZF packer: literals, near and far copies, short and long, some of them overlapping."""
    out, at, literal, seen = b"", 0, b"", {}

    def flush() -> bytes:
        return b"".join(bytes([len(literal[i : i + 32]) - 1]) + literal[i : i + 32] for i in range(0, len(literal), 32))

    while at < len(data):
        start, length = seen.get(data[at : at + 3], -1), 0
        if start >= 0 and at - start <= 8192:
            while length < 264 and at + length < len(data) and data[start + length] == data[at + length]:
                length += 1
        if length >= 3:
            back, out, literal = at - start - 1, out + flush(), b""
            short = min(length - 2, 7)
            out += bytes([short << 5 | back >> 8, *([length - 9] if short == 7 else []), back & 255])
        else:
            literal, length = literal + data[at : at + 1], 1
        for i in range(at, at + length):
            seen[data[i : i + 3]] = i
        at += length
    return out + flush()


def pcd(kind: str, points=POINTS, labels=LABELS, **changed: str) -> bytes:
    """Fields around and between the coordinates, one of them of four values, padding twice."""
    dtype = np.dtype([("_", "u1", 4), ("z", "<f4"), ("x", "<f4"), ("label", "<u2"), ("_2", "u1", 2), ("y", "<f8")])
    rows = np.zeros(len(points), dtype)
    rows["_"], rows["label"] = DRAW.integers(0, 255, (len(points), 4)), labels
    for i, axis in enumerate("xyz"):
        rows[axis] = np.asarray(points)[:, i]
    header = {"VERSION": "0.7", "FIELDS": "_ z x label _ y", "SIZE": "1 4 4 2 1 8", "TYPE": "U F F U U F"}
    header |= {"COUNT": "4 1 1 1 2 1", "WIDTH": str(len(rows)), "HEIGHT": "1", "VIEWPOINT": "0 0 0 1 0 0 0"}
    header |= {"POINTS": str(len(rows)), "DATA": kind} | changed
    body = rows.tobytes()
    if kind == "ascii":
        cells = [[*row["_"], row["z"], row["x"], row["label"], *row["_2"], row["y"]] for row in rows]
        body = "".join(" ".join(str(float(x)) for x in row) + "\n" for row in cells).encode()
    elif kind == "binary_compressed":
        packed = lzf(b"".join(rows[name].tobytes() for name in dtype.names))
        body = struct.pack("<II", len(packed), len(body)) + packed
    return ("# .PCD v0.7\n" + "".join(f"{k} {v}\n" for k, v in header.items() if v)).encode() + body


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def array(kind: str, path: Path, **arrays: np.ndarray) -> Path:
    if kind == "npy":
        np.save(path, *arrays.values())
    elif kind == "npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values, compression="gzip")
    return path


# Meshes: a box of 10 × 1 × 1


BOX = [(x, y, z) for x in (0, 10) for y in (0, 1) for z in (0, 1)]
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [(a, b, c) for a, *rest in SIDES for b, c in ((rest[0], rest[1]), (rest[1], rest[2]))]
MIXED = [SIDES[0], *TRIANGLES[2:]]


def off(points=BOX, faces=SIDES, head="OFF\n") -> bytes:
    lines = [" ".join(map(str, point)) for point in points] + [" ".join(map(str, (len(f), *f))) for f in faces]
    return f"{head}{len(points)} {len(faces)} 0\n{chr(10).join(lines)}\n".encode()


def obj(points=BOX, faces=SIDES) -> bytes:
    lines = ["mtllib absent.mtl", *(f"v {x} {y} {z}" for x, y, z in points), "usemtl red"]
    return "\n".join([*lines, *("f " + " ".join(str(i + 1) for i in face) for face in faces)]).encode()


def rich_obj() -> bytes:
    """Two materials and objects, corners with textures and normals, indices from the end."""
    corner = "{0}/1/1".format
    lines = ["# made", "o box", *(f"v {x} {y} {z} 0.5 0.5 0.5" for x, y, z in BOX), "vt 0 0", "vn 0 0 1", "usemtl red"]
    lines += ["f " + " ".join(corner(i + 1) for i in face) for face in SIDES[:3]] + ["o rest", "usemtl blue", "s off"]
    return "\r\n".join([*lines, *("f " + " ".join(str(i - 8) for i in face) for face in SIDES[3:])]).encode()


def stl(binary: bool) -> bytes:
    corners = np.array(BOX, dtype=np.float32)[TRIANGLES]
    if binary:
        parts = [struct.pack("<3f", 0, 0, 0) + triangle.tobytes() + b"\0\0" for triangle in corners]
        return b"solid, or not".ljust(80) + struct.pack("<I", len(parts)) + b"".join(parts)
    loops = ["".join(f"vertex {x} {y} {z}\n" for x, y, z in triangle) for triangle in corners]
    return ("solid a\n" + "".join(f"facet normal 0 0 0\nouter loop\n{loop}endloop\nendfacet\n" for loop in loops)
            + "endsolid a\n").encode()  # fmt: skip


def box_ply(form: str, faces, index="vertex_indices") -> bytes:
    return ply(form, BOX, np.zeros(8, int), faces, index=index)


# All of the same points


TEXTS = {
    "spaces.txt": text(),
    "tabs.xyz": text(separator="\t"),
    "commas.txt": text(separator=","),
    "commas_and_spaces.xyz": text(separator=" , "),
    "header.txt": text(separator=",", head="\ufeffx,y,z,\n"),
    "comments.xyz": text(head="60\n# made by hand\n// and so on\n\n"),
    "normals.txt": text(np.tile(POINTS, 2), separator=","),
    "words.txt": b"".join(line + b" chair leg\n" for line in text().splitlines()),
    "windows.TXT": text().replace(b"\n", b"\r\n"),
}
LABELLED = {
    "ascii.ply": ply("ascii"),
    "little.ply": ply("binary_little_endian"),
    "big.ply": ply("binary_big_endian"),
    "windows.ply": ply("ascii", newline="\r\n"),
    "windows_binary.PLY": ply("binary_little_endian", newline="\r\n"),
    "ascii.pcd": pcd("ascii"),
    "binary.pcd": pcd("binary"),
    "compressed.pcd": pcd("binary_compressed"),
}


# What becomes of them


def refused(path, because: str) -> None:
    with pytest.raises(Ewa3dError) as error:
        read_cloud(path)
    message = str(error.value)
    assert because in message and str(path) in message and "\n" not in message and ": " in message


def read_or_refuse(path: Path, content: bytes) -> Cloud | None:
    try:
        cloud = read_cloud(put(path, content), mesh_points=10)
    except Ewa3dError as error:
        assert len(str(error).splitlines()) == 1
        return None
    assert cloud.points.shape == (len(cloud.points), 3) and cloud.points.dtype == np.float64
    assert cloud.labels is None or cloud.labels.shape == (len(cloud.points),)
    return cloud
