"""Masks, in mode L: how much of the edit each pixel takes, from black (none) to white (all)."""

import cv2
import numpy as np
from PIL import Image

from qwen_worker.schema import Size

# A JPEG's black and white are off by a few: so near to either counts as it.
NEARLY = 8  # of 255
OTHER_SHAPE = 0.02  # from which a mask of another aspect than the picture's is worth a warning


def fitted(picture: Image.Image, size: Size) -> tuple[Image.Image, tuple[str, ...]]:
    """Make a mask of this size, and say what is strange about it.

    Args:
        picture: the mask as it was sent, upright, of any size.
        size: of the picture that is edited, in pixels.
    """
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    mask = ((grey - NEARLY) * (255 / (255 - 2 * NEARLY))).round().clip(0, 255).astype(np.uint8)
    warnings = []
    ratio = picture.width * size[1] / (picture.height * size[0])
    if max(ratio, 1 / ratio) > 1 + OTHER_SHAPE:
        warnings.append("the mask has another shape than the source: it was stretched")
    if (mask == 255).all():
        warnings.append("the mask is full: all of the picture was edited")
    return Image.fromarray(mask), tuple(warnings)


def in_cells(mask: Image.Image, cell: int) -> Image.Image:
    """The mask in squares of `cell` pixels a side, each white that holds any of it, else black.

    Of such a square the inpaint pipeline looks at one pixel: a fine line would be lost.
    """
    values = np.asarray(mask)
    rows, columns = values.shape[0] // cell, values.shape[1] // cell
    touched = values.reshape(rows, cell, columns, cell).any(axis=(1, 3))
    return Image.fromarray(touched.astype(np.uint8) * np.uint8(255)).resize(mask.size, Image.Resampling.NEAREST)


def feathered(mask: Image.Image, feather: int) -> Image.Image:
    """The mask fading in over `feather` pixels inside its edge; where it is black it stays black.

    Of a part that is thinner than that, the middle is edited all the same.
    """
    values = np.asarray(mask)
    if not feather:
        return mask
    touched = (values > 0).astype(np.uint8)
    inside = cv2.distanceTransform(touched, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    parts, labels = cv2.connectedComponents(touched)
    deepest = np.ones(parts, dtype=np.float32)
    np.maximum.at(deepest, labels.astype(np.intp).ravel(), inside.ravel())
    weight = inside / deepest.clip(max=feather + 1)[labels]
    return Image.fromarray((values * weight.clip(max=1)).round().astype(np.uint8))
