"""How far a result has slid and grown against its source, and how to undo it.

Edit models shift and zoom the picture a little. What they changed on purpose differs anyway, so the map is found as
from a crowd of witnesses: each block of the source is looked for in the result, and the map that most of the blocks
agree with is taken. Brightness and contrast are taken out first: an edit may change them everywhere.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from qwen_worker.schema import Size

COMPARED_AREA = 1024 * 1024  # pixels at which two pictures are compared, at most
CHANGED = 16  # of 255, in one channel: beyond what coding and resampling do
GRAIN = 0.8  # pixels, sigma: film grain would pass for contrast wherever a picture is smooth
SURROUNDINGS = 8.0  # pixels, sigma: what brightness and contrast are measured over
FAINT = 2.0  # of 255: contrast that counts half
BLOCKS_A_SIDE = 8
BLOCK = (32, 128)  # pixels a side: least, most
REACH = 1 / 3  # of a block's side: how far it is looked for
CORNER = (0.001, 0.05)  # least contrast along the weaker direction: absolute, and beside the stronger one
ALIKE = 0.5  # correlation from which a block counts as found
NEARLY_BEST = 0.95  # of the best correlation: what may be the right place too
AGREES = 1.0  # pixels beside what the map says
MAPS = 256  # that are tried at a time
MIN_BLOCKS = 6
MIN_FIT = 0.5
ROUNDS = 3  # each looks again from where the last map says, at most
SETTLED = 0.05  # pixels, anywhere: less than the measure is off by
COARSE = 64  # pixels a side: blocks from here on are first looked for in pictures of half the size
NEAR = 4  # pixels: how far a block that agreed is looked for again; it is off by less than one


@dataclass(frozen=True)
class Drift:
    """What was at p is found at p + shift + growth * (p - centre), in pixels."""

    shift: tuple[float, float]
    growth: float


def measure(source: Image.Image, result: Image.Image) -> tuple[Drift | None, float]:
    """Compare two pictures of the same size.

    Returns:
        drift: None if there is no map that at least half of the blocks agree with.
        fit: the share of blocks that agree, 0 to 1.
    """
    size, factor = _compared(result.size)
    before, after = (_relief(_at(size, picture)) for picture in (source, result))
    corners, side = _blocks(before)
    points = corners + side / 2 - np.array(size) / 2
    moved, agree = np.zeros(3), np.zeros(len(corners), dtype=bool)
    for number in range(ROUNDS):
        again = _moved_back(after, moved)
        if number == 0 and side >= COARSE:
            moves = 2 * _moves(_half(before), _half(again), corners // 2, side // 2, agree)
        else:
            moves = _moves(before, again, corners, side, agree)
        more, agree = _agreed(points, moves)
        moved = moved + more
        if number and max(abs(more[:2])) + abs(more[2]) * max(size) / 2 < SETTLED:
            break
    fit = float(agree.mean()) if len(agree) else 0.0
    if fit < MIN_FIT:
        return None, fit
    return Drift((float(moved[0] / factor), float(moved[1] / factor)), float(moved[2])), fit


def undo(drift: Drift, image: Image.Image) -> Image.Image:
    """Bring everything back to where it was in the source. What is missing at an edge is mirrored there."""
    return Image.fromarray(_moved_back(np.asarray(image), np.array([*drift.shift, drift.growth])))


def changed_share(source: Image.Image, result: Image.Image) -> float:
    """The share of pixels, 0 to 1, in which two pictures of the same size differ visibly."""
    size, _ = _compared(result.size)
    before, after = (np.asarray(_at(size, picture)) for picture in (source, result))
    alike = cv2.inRange(cv2.absdiff(before, after), (0, 0, 0), (CHANGED, CHANGED, CHANGED))
    return (alike.size - cv2.countNonZero(alike)) / alike.size


def _compared(size: Size) -> tuple[Size, float]:
    """The size at which pictures are compared, beside their own."""
    factor = min(1.0, (COMPARED_AREA / (size[0] * size[1])) ** 0.5)
    return (max(1, round(size[0] * factor)), max(1, round(size[1] * factor))), factor


def _at(size: Size, picture: Image.Image) -> Image.Image:
    """At its own size a picture is not touched."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _relief(image: Image.Image) -> np.ndarray:
    """Light and shade, free of grain, and of the brightness and the contrast of their surroundings."""
    grey = cv2.GaussianBlur(np.asarray(image.convert("L"), dtype=np.float32), (0, 0), GRAIN)
    away = grey - cv2.GaussianBlur(grey, (0, 0), SURROUNDINGS)
    contrast = np.sqrt(cv2.GaussianBlur(away * away, (0, 0), SURROUNDINGS))
    relief: np.ndarray = away / (contrast + FAINT)
    return relief


def _half(picture: np.ndarray) -> np.ndarray:
    """Of half the size; the last row or column is left out where they are odd."""
    height, width = (side // 2 for side in picture.shape)
    half: np.ndarray = cv2.resize(picture[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return half


def _blocks(picture: np.ndarray) -> tuple[np.ndarray, int]:
    """Left upper corners (N x 2) of the blocks that can be told from what is beside them, and the side of a block."""
    height, width = picture.shape
    side = min(int(np.clip(max(width, height) / BLOCKS_A_SIDE, *BLOCK)), width, height)
    columns, rows = (
        np.unique(np.linspace(0, length - side, round(1.5 * length / side)).astype(int)) for length in (width, height)
    )
    corners = [(x, y) for y in rows for x in columns if _is_corner(picture[y : y + side, x : x + side])]
    return np.array(corners).reshape(-1, 2), side


def _is_corner(block: np.ndarray) -> bool:
    """Whether a block differs from itself a little aside, whichever way: the measure of Shi and Tomasi."""
    right, down = cv2.Sobel(block, cv2.CV_32F, 1, 0).ravel(), cv2.Sobel(block, cv2.CV_32F, 0, 1).ravel()
    pairs = (right, right), (down, down), (right, down)
    across, along, both = (float(one @ two) / block.size for one, two in pairs)
    # The eigenvalues of [[across, both], [both, along]].
    mean, apart = (across + along) / 2, math.hypot((across - along) / 2, both)
    weak, strong = mean - apart, mean + apart
    return bool(weak > max(CORNER[0], CORNER[1] * strong))


def _moves(before: np.ndarray, after: np.ndarray, corners: np.ndarray, side: int, near: np.ndarray) -> np.ndarray:
    """Where each block went, N x 2 in pixels; NaN where it is not found again. `near`: those that are hardly off."""
    reach = round(side * REACH)
    wide = cv2.copyMakeBorder(after, reach, reach, reach, reach, cv2.BORDER_REFLECT_101)
    moves = np.full(corners.shape, np.nan)
    for number, (left, top) in enumerate(corners):
        far = min(NEAR, reach) if near[number] else reach
        x, y = left + reach - far, top + reach - far
        around = wide[y : y + side + 2 * far, x : x + side + 2 * far]
        likeness = cv2.matchTemplate(around, before[top : top + side, left : left + side], cv2.TM_CCOEFF_NORMED)
        if likeness.max() > ALIKE:
            moves[number] = _peak(likeness) - far
    return moves


def _peak(likeness: np.ndarray) -> np.ndarray:
    """Where it is greatest, between the pixels: the vertex of a parabola through three of them each way.

    Of places that are nearly as good the nearest is taken: a pattern that repeats has not moved by its period.
    """
    rows, columns = np.nonzero(likeness > NEARLY_BEST * likeness.max())
    centre = (np.array(likeness.shape) - 1) / 2
    nearest = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2).argmin()
    row, column = rows[nearest], columns[nearest]
    found = np.array([column, row], dtype=float)
    for axis, line, at in ((0, likeness[row], column), (1, likeness[:, column], row)):
        if 0 < at < len(line) - 1:
            low, high = line[at] - line[at - 1], line[at] - line[at + 1]
            found[axis] += (low - high) / (2 * (low + high)) if low + high > 0 else 0
    return found


def _agreed(points: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map (shift x, shift y, growth) that most of the blocks agree with, and which of all do.

    Args:
        points: N x 2, from the centre of the picture.
        moves: N x 2, NaN for a block that was not found.
    """
    agreeing = ~np.isnan(moves[:, 0])
    points, moves = points[agreeing], moves[agreeing]
    if len(points) < MIN_BLOCKS:
        return np.zeros(3), np.zeros_like(agreeing)
    best = _most(points, moves)
    agreeing[agreeing] = best
    # And all that agree with the best make the final one; a second time those of them that fit it best.
    rows = np.concatenate([np.tile(np.eye(2), (len(points), 1)), points.reshape(-1, 1)], axis=1)
    rows, said = rows.reshape(-1, 2, 3)[best], moves[best]
    found = _solved(rows, said)
    rest = ((rows @ found - said) ** 2).sum(axis=1)
    close = rest <= np.median(rest)
    return _solved(rows[close], said[close]), agreeing


def _most(points: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Which blocks agree with the first of those maps that most agree with; each two blocks make a map."""
    one, other = np.triu_indices(len(points), 1)
    away = points[other] - points[one]
    growth = ((moves[other] - moves[one]) * away).sum(axis=1) / (away**2).sum(axis=1)
    shift = moves[one] - growth[:, None] * points[one]
    best = np.zeros(len(points), dtype=bool)
    for at in range(0, len(growth), MAPS):
        part = slice(at, at + MAPS)
        far = np.zeros((len(growth[part]), len(points)))
        for axis in (0, 1):
            off = np.multiply.outer(growth[part], points[:, axis])
            off += shift[part, axis, None]
            off -= moves[:, axis]
            off *= off
            far += off
        agree = far < AGREES**2
        found = agree[np.count_nonzero(agree, axis=1).argmax()]
        if found.sum() > best.sum():
            best = found
        if best.all():
            break
    return best


def _solved(rows: np.ndarray, said: np.ndarray) -> np.ndarray:
    """By least squares: the map whose equations are `rows` (N x 2 x 3) and `said` (N x 2)."""
    found: np.ndarray = np.linalg.lstsq(rows.reshape(-1, 3), said.reshape(-1), rcond=None)[0]
    return found


def _moved_back(pixels: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The picture with what is found at p + shift + growth * (p - centre) brought back to p."""
    if not moved.any():
        return pixels
    height, width = pixels.shape[:2]
    centre = np.array([width - 1, height - 1]) / 2  # OpenCV counts from the middle of the first pixel
    growth = 1 + moved[2]
    offset = centre - growth * centre + moved[:2]
    matrix = np.array([[growth, 0, offset[0]], [0, growth, offset[1]]])
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, matrix, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101)
