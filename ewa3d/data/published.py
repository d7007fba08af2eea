"""How many clouds the splits of the published data sets have, and whether those on the disk are as many."""

from __future__ import annotations

from collections.abc import Mapping

_SCANOBJECTNN = {"train": (2309,), "test": (581,)}

PUBLISHED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    # the official hdf5 files lack three training shapes of the text release
    "modelnet40": {"train": (9843, 9840), "test": (2468,)},
    "scanobjectnn_obj_bg": _SCANOBJECTNN,
    "scanobjectnn_obj_only": _SCANOBJECTNN,
    "scanobjectnn_pb_t50_rs": {"train": (11416,), "test": (2882,)},
    "shapenetpart": {"train": (12137,), "val": (1870,), "test": (2874,)},
    "shapenet55": {"train": (41952,), "test": (10518,)},
    # episodes, not clouds
    "modelnet40_fewshot_published": {f"{way}way_{shot}shot": (10,) for way in (5, 10) for shot in (10, 20)},
}
"""The clouds of every official split, by the names of `ewa3d.data.DATASETS`; where two releases differ, of both."""


def describe_counts(counts: Mapping[str, int | None], published: Mapping[str, tuple[int, ...]]) -> str:
    """Counts by split for a person: ``train 9,843, test 18 (published 2,468)``; ``?`` where a count is not known."""
    parts = []
    for split, count in counts.items():
        wanted = published.get(split, ())
        off = f" (published {wanted[0]:,})" if wanted and count is not None and count not in wanted else ""
        parts.append(f"{split} {'?' if count is None else f'{count:,}'}{off}")
    return ", ".join(parts)


def as_published(counts: Mapping[str, int | None], published: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Whether the counts are those published; ``None`` where none are published or one is not known."""
    known = [count in published[split] for split, count in counts.items() if count is not None and split in published]
    if not published or not known:
        return None
    return False if not all(known) else None if None in counts.values() else True
