"""Two families of small pictures, drawn from a seed: ten digits and ten garments. They stand for MNIST and FashionMNIST.

A picture is a union of capsules (line segments with a thickness) under a random affine map, with ends that tremble, another
thickness and contrast each time, and noise on every pixel. Both families go through the same pen, so that a network sees
inputs with the same statistics; digits are thin, garments are filled.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = 10
KINDS = ("digits", "garments")

_PEN = 0.09
# x0, y0, x1, y1 in a square from -1 (left, top) to 1: the places where the strokes of digits lie.
_TOP, _MIDDLE, _BOTTOM = (-0.5, -0.8, 0.5, -0.8), (-0.5, 0.0, 0.5, 0.0), (-0.5, 0.8, 0.5, 0.8)
_UPPER_LEFT, _UPPER_RIGHT = (-0.5, -0.8, -0.5, 0.0), (0.5, -0.8, 0.5, 0.0)
_LOWER_LEFT, _LOWER_RIGHT = (-0.5, 0.0, -0.5, 0.8), (0.5, 0.0, 0.5, 0.8)

_DIGITS = (
    (_TOP, _UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT, _BOTTOM),
    ((0.0, -0.8, 0.0, 0.8), (-0.3, -0.5, 0.0, -0.8)),
    (_TOP, _UPPER_RIGHT, (0.5, 0.0, -0.5, 0.8), _BOTTOM),
    (_TOP, _UPPER_RIGHT, _MIDDLE, _LOWER_RIGHT, _BOTTOM),
    ((0.2, -0.8, -0.6, 0.2), (-0.6, 0.2, 0.6, 0.2), (0.3, -0.3, 0.3, 0.8)),
    (_TOP, _UPPER_LEFT, _MIDDLE, _LOWER_RIGHT, _BOTTOM),
    ((0.4, -0.8, -0.5, 0.0), _MIDDLE, _LOWER_LEFT, _LOWER_RIGHT, _BOTTOM),
    (_TOP, (0.5, -0.8, -0.2, 0.8)),
    (_TOP, _UPPER_LEFT, _UPPER_RIGHT, _MIDDLE, _LOWER_LEFT, _LOWER_RIGHT, _BOTTOM),
    (_TOP, _UPPER_LEFT, _UPPER_RIGHT, _MIDDLE, (0.5, 0.0, 0.1, 0.8)),
)
# With the thickness as a fifth number: top, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, boot.
_GARMENTS = (
    ((0.0, -0.3, 0.0, 0.5, 0.42), (-0.8, -0.4, 0.8, -0.4, 0.16)),
    ((-0.25, -0.7, -0.35, 0.8, 0.15), (0.25, -0.7, 0.35, 0.8, 0.15), (-0.25, -0.75, 0.25, -0.75, 0.15)),
    ((0.0, -0.3, 0.0, 0.5, 0.38), (-0.4, -0.6, -0.8, 0.7, 0.14), (0.4, -0.6, 0.8, 0.7, 0.14)),
    ((0.0, -0.8, 0.0, 0.0, 0.2), (0.0, 0.0, -0.4, 0.8, 0.18), (0.0, 0.0, 0.4, 0.8, 0.18), (0.0, 0.1, 0.0, 0.8, 0.2)),
    ((-0.3, -0.6, -0.3, 0.8, 0.2), (0.3, -0.6, 0.3, 0.8, 0.2), (-0.5, -0.6, -0.85, 0.6, 0.12), (0.5, -0.6, 0.85, 0.6, 0.12)),
    ((-0.8, 0.5, 0.8, 0.5, 0.1), (-0.5, 0.4, 0.0, -0.1, 0.08), (0.0, -0.1, 0.6, 0.4, 0.08)),
    ((0.0, -0.5, 0.0, 0.6, 0.34), (-0.6, -0.7, -0.2, -0.4, 0.16), (0.6, -0.7, 0.2, -0.4, 0.16)),
    ((-0.8, 0.4, 0.7, 0.4, 0.2), (0.0, 0.2, 0.7, 0.0, 0.2)),
    ((-0.4, 0.3, 0.4, 0.3, 0.38), (-0.35, -0.1, 0.0, -0.6, 0.07), (0.0, -0.6, 0.35, -0.1, 0.07)),
    ((0.3, -0.7, 0.3, 0.5, 0.22), (-0.6, 0.55, 0.3, 0.55, 0.2)),
)


def draw(kind: str, n: int, seed: list[int], *, size: int = 16, distortion: float = 1.0, noise: float = 0.2):
    """``n`` pictures of a family, classes in equal shares and in random order.

    Args:
        kind: ``digits`` or ``garments``.
        seed: what numpy's generator is seeded with; the same numbers give the same pictures.
        size: pixels on each side.
        distortion: how far the affine map and the trembling go (0: every picture of a class is the same but for the noise).
        noise: standard deviation of what is added to each pixel (paper 0, ink 1).

    Returns:
        pictures [n, size * size] float32 and classes [n] int64.
    """
    rng = np.random.default_rng([KINDS.index(kind), *seed])
    shapes = _padded(_DIGITS if kind == "digits" else _GARMENTS)
    classes = rng.permutation(np.arange(n) % CLASSES)
    strokes_NS5 = shapes[classes]
    ends_NS22 = strokes_NS5[..., :4].reshape(n, -1, 2, 2) + rng.normal(0, 0.07 * distortion, (n, shapes.shape[1], 2, 2))
    width_NS = strokes_NS5[..., 4] * rng.uniform(1 - 0.3 * distortion, 1 + 0.3 * distortion, (n, 1))
    ends_NS22 = ends_NS22 @ _maps(n, distortion, rng) + rng.uniform(-0.2, 0.2, (n, 1, 1, 2)) * distortion
    ink_NP = _ink(ends_NS22, width_NS, size) * rng.uniform(0.7, 1.0, (n, 1))
    return (ink_NP + rng.normal(0, noise, ink_NP.shape)).astype(np.float32), classes.astype(np.int64)


def _padded(shapes: tuple) -> NDArray[np.float64]:
    """[classes, strokes, 5]; strokes that a class does not have lie far outside."""
    most = max(map(len, shapes))
    full = np.zeros((CLASSES, most, 5))
    full[:, :, :4], full[:, :, 4] = 99.0, _PEN
    for k, shape in enumerate(shapes):
        for s, stroke in enumerate(shape):
            full[k, s, : len(stroke)] = stroke
    return full


def _maps(n: int, distortion: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random affine maps [n, 1, 2, 2]: a turn of up to 20 degrees, a shear, and a scale for each axis."""
    turn, shear = rng.uniform(-0.35, 0.35, n) * distortion, rng.uniform(-0.3, 0.3, n) * distortion
    scale_2n = 0.85 * (1 + rng.uniform(-0.2, 0.2, (2, n)) * distortion)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    sheared = np.array([[scale_2n[0], shear * scale_2n[0]], [np.zeros(n), scale_2n[1]]])
    return np.einsum("abn,bcn->nac", rotation, sheared)[:, None]


def _ink(ends_NS22: NDArray, width_NS: NDArray, size: int, chunk: int = 256) -> NDArray[np.float64]:
    """Coverage of each pixel, 0 to 1, [N, size * size]: a soft step, a pixel wide, at the edge of the nearest capsule."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    places_P2 = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    rows = []
    for start in range(0, len(ends_NS22), chunk):
        ends, width = ends_NS22[start : start + chunk], width_NS[start : start + chunk]
        from_, along = ends[:, :, None, 0], ends[:, :, None, 1] - ends[:, :, None, 0]
        to_place = places_P2 - from_
        share = (to_place * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
        distance = np.linalg.norm(to_place - np.clip(share, 0, 1)[..., None] * along, axis=-1) - width[..., None]
        rows.append(np.clip(0.5 - distance.min(1) * size / 2, 0, 1))
    return np.concatenate(rows)
