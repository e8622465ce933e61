"""A colour for each method, the same in every figure."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterable

# Dark enough on white and told apart by colour-blind eyes in the first seven (after Okabe and Ito); grey is
# kept for methods that train nothing, so that the untouched base looks the same in every chart.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B3294", "#8C510A", "#1B1B1B", "#C51B7D",
    "#4D9221", "#B2182B", "#01665E", "#6A3D9A", "#B8860B", "#2166AC", "#DE77AE", "#5AAE61", "#A6611A", "#3B3EAC",
)  # fmt: skip
GREYS = ("#7F7F7F", "#A9A9A9", "#5B5B5B", "#C4C4C4")


def palette(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each method, by its place in the experiment's list: `{method: "#rrggbb"}`.

    Appending methods to an experiment changes no colour of the earlier ones.
    """
    colors: dict[str, str] = {}
    greys = trained = 0
    for method in dict.fromkeys(methods):
        if "zero_shot" in method or "zero-shot" in method:
            colors[method] = GREYS[greys % len(GREYS)]
            greys += 1
        else:
            colors[method] = COLORS[trained] if trained < len(COLORS) else _hashed_color(method)
            trained += 1
    return colors


def _hashed_color(name: str) -> str:
    digest = hashlib.sha256(name.encode()).digest()
    rgb = colorsys.hls_to_rgb(digest[0] / 255, 0.3 + 0.25 * digest[1] / 255, 0.4 + 0.5 * digest[2] / 255)
    return "#" + "".join(f"{round(255 * x):02X}" for x in rgb)
