"""The readers, each with good small files that broken ones are made of."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import torch
from safetensors.torch import save

sys.path.append(str(Path(__file__).parents[1] / "data"))
from cloud_files import (
    BOX,
    LABELLED,
    LABELS,
    MIXED,
    POINTS,
    SIDES,
    TEXTS,
    box_ply,
    obj,
    off,
    pcd,
    ply,
    rich_obj,
    stl,
    text,
)

import ewa3d
from ewa3d.data import ModelNet40, PublishedFewShot, ScanObjectNN, ShapeNet55, ShapeNetPart
from ewa3d.data.cloud import Cloud
from ewa3d.data.dataset import Clouds
from ewa3d.data.download import Release, extract, find_layout
from ewa3d.data.io import read_cloud
from ewa3d.engine.checkpoint import checkpoints, find_checkpoint, random_state, save_checkpoint
from ewa3d.engine.config import load_config, to_yaml
from ewa3d.engine.schema import Config
from ewa3d.engine.session import Progress, _restore
from ewa3d.engine.study import Study, load_study

FEW = {"points": POINTS[35:45], "labels": LABELS[:10]}
TINY = {"embed_dim": 12, "depth": 2, "num_heads": 2, "num_groups": 4, "group_size": 4}
Files = Mapping[str, bytes]
"""A folder: its files by their names."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        seeds: makes good inputs.
        read: reads one, a folder, and checks what comes of it.
        names_file: whether what it raises says which file.
        makes: what it writes in the folder.
        reserves: whether its library asks for memory that a file claims, and never touches it.
    """

    seeds: Callable[[], list[Files]]
    read: Callable[[Path], Any]
    names_file: bool = True
    makes: str = ""
    reserves: bool = False


# Single clouds


def _read_one(folder: Path) -> None:
    cloud = read_cloud(next(folder.iterdir()), mesh_points=10)
    assert isinstance(cloud, Cloud) and cloud.points.shape == (len(cloud.points), 3)
    assert cloud.points.dtype == np.float64 and np.isfinite(cloud.points).all(axis=1).any()
    assert cloud.normals is None or cloud.normals.shape == cloud.points.shape
    assert cloud.labels is None or cloud.labels.shape == (len(cloud.points),)


def _singles(suffix: str, whole: Callable[[], list[bytes]]) -> Target:
    return Target(lambda: [{f"a.{suffix}": content} for content in whole()], _read_one)


def _ply() -> list[bytes]:
    forms = ("ascii", "binary_little_endian", "binary_big_endian")
    return [ply(form, **FEW) for form in forms] + [box_ply(form, faces) for form in forms for faces in (MIXED, SIDES)]


def _pcd() -> list[bytes]:
    return [pcd(kind, **FEW) for kind in ("ascii", "binary", "binary_compressed")] + [LABELLED["compressed.pcd"]]


def _text() -> list[bytes]:
    few = [text(POINTS[:9]), text(POINTS[:9], ","), text(np.tile(POINTS[:5], 2), "\t")]
    return [*few, TEXTS["comments.xyz"][:300], TEXTS["header.txt"][:300]]


def _saved(save: Callable[..., None], *args: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    save(out, *args, **options)
    return out.getvalue()


def _npy() -> list[bytes]:
    kinds = [POINTS[:9], POINTS[:9].astype(">f8"), np.asfortranarray(POINTS[:9]), np.arange(60).reshape(10, 6)]
    return [_saved(np.save, values) for values in kinds]


def _npz() -> list[bytes]:
    few = {"points": POINTS[:9], "normals": POINTS[:9], "label": LABELS[:9]}
    return [_saved(np.savez, **few), _saved(np.savez_compressed, **few), _saved(np.savez, POINTS[:9])]


# HDF5


def _hdf5(fill: Callable[[h5py.File], object], **options: Any) -> bytes:
    out = io.BytesIO()
    with h5py.File(out, "w", **options) as file:
        fill(file)
    return out.getvalue()


def _put(file: h5py.File, arrays: Mapping[str, np.ndarray], **options: Any) -> None:
    for name, values in arrays.items():
        file.create_dataset(name, data=values, **options)


def _hdf5_kinds(arrays: Mapping[str, np.ndarray]) -> list[bytes]:
    """The same content in every way that HDF5 has of storing it."""
    first = next(iter(arrays))
    ways: list[dict[str, Any]] = [{}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}]
    ways += [{"fletcher32": True}, {"scaleoffset": 2}]
    files = [_hdf5(partial(_put, arrays=arrays, **way)) for way in ways]
    files += [_hdf5(partial(_put, arrays=arrays, **way), libver=("v108", "v110")) for way in ways[:2]]
    growing = {name: (None, *values.shape[1:]) for name, values in arrays.items()}

    def grow(file: h5py.File) -> None:
        for name, values in arrays.items():
            item = file.create_dataset(name, values.shape, values.dtype, maxshape=growing[name], chunks=True)
            item[:] = values
            item.attrs["note"] = "variable"
        file["text"], file["fixed"] = ["a", "bc"], np.array([b"a", b"bc"])

    def virtual(file: h5py.File) -> None:
        _put(file, {f"{name}0": values for name, values in arrays.items()})
        for name, values in arrays.items():
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(".", f"{name}0", values.shape)
            file.create_virtual_dataset(name, layout)

    def linked(file: h5py.File) -> None:
        _put(file, {name: values for name, values in arrays.items() if name != first})
        file[first] = h5py.ExternalLink("other.h5", first)

    def outside(file: h5py.File) -> None:
        file.create_dataset(first, arrays[first].shape, arrays[first].dtype, external="raw.bin")

    return [*files, *map(_hdf5, (grow, virtual, linked, outside)), _hdf5(grow, libver="latest")]


def _h5_clouds() -> list[bytes]:
    return _hdf5_kinds({"points": POINTS[:9]})[:7] + _hdf5_kinds({"data": np.stack([POINTS[:9]] * 2)})


# Datasets


def _read_dataset(make: Callable[[Path], Clouds]) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        data = make(folder)
        assert isinstance(data, Clouds) and len(data) == len(data.labels) == len(data.sources) > 0
        batch = data.batch([0, len(data) - 1])
        assert batch["points"].dtype == torch.float32 and torch.isfinite(batch["points"]).all()
        assert 0 <= int(data.labels.min()) <= int(data.labels.max()) < len(data.class_names)

    return read


CLASSES = "airplane\nnight_stand\n"
_CLOUDS = {"data": np.stack([POINTS[:9]] * 4), "label": np.arange(4)[:, None].astype(np.uint8) % 2}


def _modelnet_h5() -> list[Files]:
    lists = {"train_files.txt": b"data/ply_data_train0.h5\n", "shape_names.txt": CLASSES.encode()}
    kinds = _hdf5_kinds({**_CLOUDS, "normal": _CLOUDS["data"]})
    return [{**lists, "ply_data_train0.h5": content} for content in kinds]


def _rows(count: int = 6, separator: str = ",", last: str = "") -> bytes:
    cells = np.tile(POINTS[:count], 2).tolist()
    return "".join(separator.join(map(str, row)) + last + "\n" for row in cells).encode()


def _modelnet_text() -> list[Files]:
    names = ("airplane_0001", "airplane_0002", "night_stand_0001", "night_stand_0002")
    clouds = {f"{name.rpartition('_')[0]}/{name}.txt": _rows() for name in names}
    lists = {"modelnet40_shape_names.txt": CLASSES, "modelnet40_train.txt": "\n".join(names)}
    return [{**{name: content.encode() for name, content in lists.items()}, **clouds}]


def _modelnet_dat() -> list[Files]:
    clouds = [np.tile(POINTS[:6], 2)] * 2 + [np.tile(POINTS[:6], 2).astype(np.float64)]
    labels = [np.array([0], np.int32), np.array([1], np.int32), np.int64(1)]
    return [
        {
            "modelnet40_train_8192pts_fps.dat": pickle.dumps([clouds, labels], protocol),
            "modelnet40_shape_names.txt": CLASSES.encode(),
        }
        for protocol in (2, 3, 4, 5)
    ]


def _fewshot() -> list[Files]:
    def row(new: int) -> tuple[np.ndarray, int, int]:
        return np.tile(POINTS[:4], 2), new, 7 * new + 3

    episode = {"train": [row(new) for new in range(2)], "test": [row(new) for new in range(2)]}
    return [{"2way_1shot/0.pkl": pickle.dumps(episode, protocol)} for protocol in (2, 4, 5)]


PARTS = {
    "Chair": {"synset": "03001627", "first_part": 0, "parts": ["seat", "leg"]},
    "Lamp": {"synset": "03636649", "first_part": 2, "parts": ["foot", "shade"]},
}


def _shapenetpart_text() -> list[Files]:
    names = ["shape_data/03001627/a1", "shape_data/03001627/a2", "shape_data/03636649/b1"]
    folder = {f"{'/'.join(name.split('/')[1:])}.txt": _rows(4, " ", " 1.0") for name in names[:2]}
    folder["03636649/b1.txt"] = _rows(4, " ", " 2.0")
    folder["train_test_split/shuffled_train_file_list.json"] = json.dumps(names).encode()
    folder["train_test_split/shuffled_test_file_list.json"] = b"[]"
    folder["synsetoffset2category.txt"] = b"Chair\t03001627\nLamp\t03636649\n"
    return [{**folder, "parts.json": json.dumps(PARTS).encode()}]


def _shapenetpart_h5() -> list[Files]:
    arrays = {"data": _CLOUDS["data"][:2], "label": np.array([[0], [1]], np.uint8)}
    arrays["pid"] = np.repeat([[1], [2]], 9, axis=1).astype(np.uint8)
    return [
        {"ply_data_train0.h5": content, "parts.json": json.dumps(PARTS).encode()} for content in _hdf5_kinds(arrays)
    ]


def _scanobjectnn() -> list[Files]:
    kinds = _hdf5_kinds({**_CLOUDS, "mask": np.zeros((4, 9), np.int64)})
    return [{"main_split/training_objectdataset.h5": content} for content in kinds]


def _shapenet55() -> list[Files]:
    names = [f"0000000{i % 2}-{i}a-b.npy" for i in range(4)]
    folder = {f"shapenet_pc/{name}": _saved(np.save, POINTS[:9]) for name in names}
    return [{**folder, "ShapeNet-55/train.txt": "\n".join(names).encode()}]


# Zips


def _zips() -> list[Files]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("set/", "")
        for name in ("train_files.txt", "test_files.txt", "a/b/data.bin"):
            archive.writestr(f"set/{name}", "content\n" * 9)
    return [{"data.zip": out.getvalue()}]


def _read_zip(folder: Path) -> None:
    release = Release("Fuzzed", "http://127.0.0.1", {"train_files.txt": "fuzzed"}, {}, lambda *_: (0, ""))
    file, out = folder / "data.zip", folder / "out"
    out.mkdir(exist_ok=True)
    find_layout(file, release)
    extract(file, out)


# Recipes, studies, weights, checkpoints


def _recipes() -> list[Files]:
    short = b"task: classification\nmodel: {name: point_mae_tiny, num_groups: 8}\n"
    short += b"ewa: {num_experts: 3}\ntrain:\n  epochs: 2\n"
    anchored = b"x: &x {epochs: 2}\n" + short
    return [{"a.yaml": content} for content in (short, anchored, to_yaml(Config()).encode())]


def _read_recipe(folder: Path) -> None:
    assert isinstance(load_config(folder / "a.yaml"), Config)


def _studies() -> list[Files]:
    study = b"# asks\nbaseline: dense\nseeds: [0, 1]\nsplit: val\n"
    study += b"tasks:\n  shapes: {recipe: a.yaml, set: [train.epochs=1]}\narms: {dense: {set: [ewa=null]}, ewa: {}}\n"
    return [{"s.yaml": study}]


def _read_study(folder: Path) -> None:
    assert isinstance(load_study(folder / "s.yaml"), Study)


def _tiny() -> Any:
    torch.manual_seed(0)
    return ewa3d.create_model("point_mae_tiny", **TINY, num_classes=2)


def _files_of(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _made(make: Callable[[Path], object]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return _files_of(Path(folder))


def _exports() -> list[Files]:
    routed = ewa3d.upcycle(_tiny(), 2, every=2, routing="topk")
    return [_made(lambda folder, m=model: ewa3d.save_pretrained(m, folder)) for model in (_tiny(), routed)]


def _small_state() -> dict[str, torch.Tensor]:
    return {key: value for key, value in _tiny().state_dict().items() if value.numel() < 50}


def _pth() -> list[Files]:
    state = _small_state()
    contents: list[Any] = [state, {"base_model": state, "epoch": 0, "best": np.float64(1)}]
    contents += [{"model": {f"module.{key}": value for key, value in state.items()}}]

    def to_pth(out: Any, content: Any, is_zip: bool) -> None:
        torch.save(content, out, _use_new_zipfile_serialization=is_zip)

    return [{"a.pth": _saved(to_pth, content, is_zip)} for content in contents for is_zip in (True, False)]


def _safetensors() -> list[Files]:
    return [{"a.safetensors": save(_small_state())}]


def _read_weights(folder: Path) -> None:
    report = ewa3d.load_pretrained(_MODEL, next(folder.iterdir()))
    assert report.matched and isinstance(str(report), str)


def _read_export(folder: Path) -> None:
    assert isinstance(ewa3d.from_pretrained(folder), torch.nn.Module)


def _learner() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def _checkpoints() -> list[Files]:
    model, optimizer = _learner()
    own = {"random": random_state(), "sums": None}
    state = {**asdict(Progress(epoch=1, step=1)), "labels": {}, "averager": None, "processes": [own]}
    return [_made(lambda folder: save_checkpoint(folder, model, optimizer, state, best=True))]


def _read_checkpoint(folder: Path) -> None:
    model, optimizer = _learner()
    process = SimpleNamespace(process_index=0)
    session: Any = SimpleNamespace(plain=model, optimizer=optimizer, accelerator=process, ema=None, averager=None)
    session.sums = SimpleNamespace(loss=torch.zeros(()), correct=torch.zeros(()))
    find_checkpoint(folder)
    for saved in checkpoints(folder):
        progress, processes = _restore(session, saved)
        assert isinstance(progress, Progress) and processes > 0


_MODEL = _tiny()
TARGETS = {
    "ply": _singles("ply", _ply),
    "pcd": _singles("pcd", _pcd),
    "off": _singles("off", lambda: [off(), off(head="OFF"), off(faces=MIXED), off(BOX, ())]),
    "obj": _singles("obj", lambda: [obj(), obj(faces=MIXED), rich_obj()]),
    "stl": _singles("stl", lambda: [stl(True), stl(False)]),
    "text": _singles("txt", _text),
    "npy": _singles("npy", _npy),
    "npz": _singles("npz", _npz),
    "h5": _singles("h5", _h5_clouds),
    "modelnet40_h5": Target(_modelnet_h5, _read_dataset(lambda f: ModelNet40(f, "trainval", normals=True))),
    "modelnet40_text": Target(_modelnet_text, _read_dataset(lambda f: ModelNet40(f, "trainval", cache=False))),
    "modelnet40_dat": Target(_modelnet_dat, _read_dataset(lambda f: ModelNet40(f, "trainval", normals=True))),
    "fewshot": Target(_fewshot, _read_dataset(lambda f: PublishedFewShot(f, way=2, shot=1, fold=0))),
    "shapenetpart_text": Target(_shapenetpart_text, _read_dataset(lambda f: ShapeNetPart(f, cache=False))),
    "shapenetpart_h5": Target(_shapenetpart_h5, _read_dataset(ShapeNetPart)),
    "scanobjectnn": Target(_scanobjectnn, _read_dataset(lambda f: ScanObjectNN("obj_bg", f, "trainval"))),
    "shapenet55": Target(_shapenet55, _read_dataset(lambda f: ShapeNet55(f, "trainval"))),
    "zip": Target(_zips, _read_zip, makes="out"),
    "config": Target(_recipes, _read_recipe, names_file=False),
    "study": Target(_studies, _read_study),
    "pth": Target(_pth, _read_weights, reserves=True),
    "safetensors": Target(_safetensors, _read_weights),
    "export": Target(_exports, _read_export),
    "checkpoint": Target(_checkpoints, _read_checkpoint),
}
