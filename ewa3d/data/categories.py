"""Which categories and parts a folder in ShapeNetPart's layout has, as its own files say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Ewa3dError, quoted, shorten
from .part_map import SHAPENETPART, SYNSETS, PartMap
from .reading import read_json, read_lines

CATEGORIES_FILE = "synsetoffset2category.txt"
_MOST_PARTS = 10_000  # of all categories: tables of categories by parts are made


@dataclass(frozen=True)
class Categories:
    """What the labels and parts of a folder mean."""

    synsets: Sequence[str]  # of the categories, in the order of their labels
    part_map: PartMap
    named: str  # what says so


def read_categories(folder: Path, layout: str, get_it: str) -> Categories:
    """The categories of ``parts.json`` where the folder has one, else ShapeNetPart's 16.

    Args:
        folder: the data set.
        layout: of ``"text"`` the list ``synsetoffset2category.txt`` must agree; it may list some of the 16 only.
        get_it: how a user gets the data set, for the ends of the errors.

    Raises:
        Ewa3dError: one of the two is broken, they disagree, or a synset is not known and there is no ``parts.json``.
    """
    described = folder / "parts.json"
    if described.is_file():
        synsets, part_map = read_parts(described, get_it)
        out = Categories(synsets, part_map, described.name)
    else:
        out = Categories(list(SYNSETS), SHAPENETPART, "ShapeNetPart")
    if layout == "text":
        _check_listed(folder / CATEGORIES_FILE, out, get_it, whole=described.is_file())
    return out


def read_parts(path: Path, get_it: str) -> tuple[list[str], PartMap]:
    """Read ``parts.json``: ``{category: {"synset": text, "first_part": integer, "parts": [name, …]}}``.

    Returns:
        The synsets of the categories, in the order of their labels, which is that of their first parts; their parts.

    Raises:
        Ewa3dError: no such file, no JSON, another content, a synset twice, or part ids with gaps or overlaps.
    """

    def broken(what: str) -> Ewa3dError:
        return Ewa3dError(f"{path}: {what}: mend it")

    content = read_json(path, get_it)
    if not isinstance(content, dict) or not content:
        raise broken("is no object of categories")
    for name, entry in content.items():
        if not (_is_name(name) and isinstance(entry, dict) and _is_name(entry.get("synset"))):
            raise broken(f"category {quoted(name)} has no name or no synset, a text")
        if type(entry.get("first_part")) is not int:
            raise broken(f"category {quoted(name)} has no first_part, an integer")
        parts = entry.get("parts")
        if not isinstance(parts, list) or not parts or not all(map(_is_name, parts)) or len(set(parts)) < len(parts):
            raise broken(f"category {quoted(name)} has no parts, a list of one name or more, none twice")

    if (count := sum(len(entry["parts"]) for entry in content.values())) > _MOST_PARTS:
        raise broken(f"has {count} parts, and there may be {_MOST_PARTS}")

    ordered = sorted(content.items(), key=lambda item: item[1]["first_part"])
    synsets: list[str] = []
    count = 0
    for name, entry in ordered:
        if entry["first_part"] != count:
            raise broken(
                f"category {quoted(name)} has first_part {quoted(entry['first_part'])} where {count} should be (part "
                "ids run from 0 through all categories, without gap or overlap)"
            )
        if entry["synset"] in synsets:
            raise broken(f"category {quoted(name)} has the synset {entry['synset']} of another")
        synsets.append(entry["synset"])
        count += len(entry["parts"])
    return synsets, PartMap({name: tuple(entry["parts"]) for name, entry in ordered})


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable() and len(value) <= 200


def _check_listed(path: Path, categories: Categories, get_it: str, *, whole: bool) -> None:
    """Raise where ``synsetoffset2category.txt`` lists what is not known or, with ``whole``, differs from parts.json."""
    names = dict(zip(categories.synsets, categories.part_map.categories, strict=True))
    listed: set[str] = set()
    for line in read_lines(path, get_it):
        *words, synset = line.split()
        name, synset = shorten(" ".join(words)), shorten(synset)
        if not words or synset in listed:
            raise Ewa3dError(
                f"{path}: {quoted(line)} is no category and synset, or a synset named before: mend the list"
            )
        listed.add(synset)
        if whole and names.get(synset) != name:
            raise Ewa3dError(f"{path}: {name} {synset} is no category and synset of parts.json: make the two agree")
        if synset not in names:
            raise Ewa3dError(
                f"{path}: {name} {synset} is none of ShapeNetPart's {len(names)} categories: add parts.json, which "
                "says what parts it has (datasets/README.md shows one)"
            )
    if whole and (missing := [f"{name} {synset}" for synset, name in names.items() if synset not in listed]):
        raise Ewa3dError(f"{path}: lacks {missing[0]}, which parts.json has: make the two agree")
