"""Files of models that share the names of Point-MAE's state dict and compute something else.

Their group encoder, position embedding and norm would load without a word, and nothing would work. They are told by
keys that Point-MAE and Point-BERT lack. Facts: the public PointGPT (commit c4ccbde), ReCon (eb37728) and PointMamba
(c993477) sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# (a key of the model alone, the model, what it does otherwise)
_RELATIVES = (
    (
        re.compile(r"(^|\.)GPT_Transformer\.|(^|\.)(generator_)?blocks\.layers\.\d+\.ln_1\."),
        "PointGPT",
        "its blocks are causal, with other layers (ln_1, attn.in_proj_weight), on sorted groups and sine positions",
    ),
    (
        re.compile(r"_contrast\.|(^|\.)(img|text)_(token|pos)$"),
        "ReCon",
        "every block has a second branch (attn_contrast, mlp_contrast) for image and text tokens",
    ),
    (
        re.compile(r"(^|\.)blocks\.layers\.\d+\.mixer\."),
        "PointMamba",
        "its blocks are state-space mixers (mixer.A_log), without attention and FFN",
    ),
)


def name_relative(keys: Iterable[str]) -> str | None:
    """Which relative of Point-MAE a state dict with these keys is of, and why it does not fit; ``None``: of none."""
    keys = list(keys)
    for pattern, name, difference in _RELATIVES:
        if any(pattern.search(key) for key in keys):
            return f"it seems to be a file of {name}, another architecture: {difference}"
    return None
