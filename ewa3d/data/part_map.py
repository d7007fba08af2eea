"""Categories, their parts, and the colours these are drawn in: one place for every part-segmentation dataset."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartMap:
    """Which parts each category has. Part ids count through all parts of all categories, in order.

    Args:
        parts: the part names of every category; categories in the order of their labels.
    """

    parts: Mapping[str, Sequence[str]]

    @property
    def categories(self) -> list[str]:
        """Category names, in the order of their labels."""
        return list(self.parts)

    @property
    def part_names(self) -> list[str]:
        """``category/part`` for every part id."""
        return [f"{category}/{part}" for category, parts in self.parts.items() for part in parts]

    def range_of(self, category: int) -> range:
        """The part ids of a category."""
        sizes = [len(parts) for parts in self.parts.values()]
        first = sum(sizes[:category])
        return range(first, first + sizes[category])

    def mask(self) -> Tensor:
        """``(categories, parts)`` bool: whether a part is the category's."""
        out = torch.zeros(len(self.parts), len(self.part_names), dtype=torch.bool)
        for category in range(len(self.parts)):
            out[category, list(self.range_of(category))] = True
        return out

    def colors(self) -> Tensor:
        """``(parts, 3)`` uint8: the parts of one category, which are seen together, differ most."""
        return torch.tensor([_color(i) for parts in self.parts.values() for i in range(len(parts))], dtype=torch.uint8)


# Okabe and Ito's palette, which colour-blind readers can tell apart (2008), without its black; then five more, darker
# and paler than these. A category has rarely more parts.
_PALETTE = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (86, 180, 233),
    (240, 228, 66),
    (118, 42, 131),
    (150, 150, 150),
    (110, 66, 30),
    (178, 223, 138),
    (35, 45, 60),
)


def _color(index: int) -> tuple[int, int, int]:
    if index < len(_PALETTE):
        return _PALETTE[index]
    # steps of the golden ratio around the colour wheel never come near an earlier one soon
    red, green, blue = colorsys.hsv_to_rgb(0.618034 * index % 1, 0.45, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


SYNSETS = {
    "02691156": "Airplane",
    "02773838": "Bag",
    "02954340": "Cap",
    "02958343": "Car",
    "03001627": "Chair",
    "03261776": "Earphone",
    "03467517": "Guitar",
    "03624134": "Knife",
    "03636649": "Lamp",
    "03642806": "Laptop",
    "03790512": "Motorbike",
    "03797390": "Mug",
    "03948459": "Pistol",
    "04099429": "Rocket",
    "04225987": "Skateboard",
    "04379243": "Table",
}
"""WordNet synsets of ShapeNetPart's 16 categories, in the order of their labels."""

_PART_COUNTS = (4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3)

SHAPENETPART = PartMap(
    {name: tuple(f"part {i}" for i in range(count)) for name, count in zip(SYNSETS.values(), _PART_COUNTS, strict=True)}
)
"""ShapeNetPart's 16 categories and 50 parts (Yi et al., SIGGRAPH Asia 2016); the release numbers its parts, unnamed."""
