"""Masks: white is edited, black is kept."""

import numpy as np
import pytest
from PIL import Image

from qwen_worker.images.decode import decode
from qwen_worker.images.masks import feathered, fitted, in_cells
from tests.pictures import file_of


def box(size: tuple[int, int] = (40, 30), *, inside: int = 255) -> Image.Image:
    values = np.zeros((size[1], size[0]), dtype=np.uint8)
    values[10:20, 10:30] = inside
    return Image.fromarray(values)


def values_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_a_mask_of_the_same_size_is_taken_as_it_is() -> None:
    """To the pixel."""
    mask, warnings = fitted(box().convert("RGB"), (40, 30))

    assert mask.mode == "L"
    assert (values_of(mask) == values_of(box())).all()
    assert warnings == ()


def test_a_mask_of_another_size_is_fitted() -> None:
    """Over the whole picture; a pixel of it stays where it was."""
    mask, warnings = fitted(box(), (400, 300))
    found = values_of(mask)

    assert mask.size == (400, 300)
    assert (found[110:190, 110:290] == 255).all()
    assert (found[:90] == 0).all()
    assert (found[:, 310:] == 0).all()
    assert warnings == ()


def test_a_mask_of_another_shape_is_stretched_and_said() -> None:
    """It may be the wrong file."""
    assert "stretched" in fitted(box(), (300, 300))[1][0]
    assert "stretched" in fitted(box(), (500, 300))[1][0]
    assert fitted(box((40, 30)), (401, 300))[1] == ()


def test_a_grey_mask_is_neither_empty_nor_full() -> None:
    """It edits everything by half."""
    assert fitted(Image.new("L", (40, 30), 128), (40, 30))[1] == ()


@pytest.mark.parametrize("value", [0, 255, 6, 250])
def test_what_is_nearly_black_or_white_is_it(value: int) -> None:
    """As in a JPEG. A full mask is said."""
    mask, warnings = fitted(Image.new("L", (40, 30), value), (40, 30))

    assert ["full" in said for said in warnings] == ([True] if value > 128 else [])
    assert set(values_of(mask).flat) == {0 if value < 128 else 255}


def test_grey_is_half() -> None:
    """A soft mask stays soft."""
    grey = values_of(fitted(box(inside=128), (40, 30))[0])

    assert 120 < grey[15, 20] < 136
    assert grey[0, 0] == 0


def test_what_is_transparent_is_kept() -> None:
    """Whatever colour lies below it."""
    layer = Image.new("RGBA", (40, 30), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (10, 10, 30, 20))
    decoded = decode(file_of(layer), max_pixels=10**6, backdrop="black")

    assert (values_of(fitted(Image.fromarray(decoded.array), (40, 30))[0]) == values_of(box())).all()


def test_a_fine_line_reaches_the_model() -> None:
    """Each square that the mask touches is white, and no other."""
    values = np.zeros((32, 48), dtype=np.uint8)
    values[17, :] = 1
    found = values_of(in_cells(Image.fromarray(values), 8))

    assert found.shape == (32, 48)
    assert (found[16:24] == 255).all()
    assert (np.delete(found, range(16, 24), axis=0) == 0).all()


def test_the_feather_lies_inside() -> None:
    """It fades in from the edge, over as many pixels as were asked for; outside nothing changes."""
    plain = values_of(box((60, 50)))
    for width in (1, 3):
        found = values_of(feathered(box((60, 50)), width))
        line = found[10 : 10 + width + 1, 20]

        assert (found[plain == 0] == 0).all()
        assert line.tolist() == [round(255 * (step + 1) / (width + 1)) for step in range(width + 1)]
        assert found[14, 20] == 255


def test_a_thin_part_is_edited_all_the_same() -> None:
    """In its middle, whatever the feather; beside a thick one too."""
    values = np.zeros((40, 60), dtype=np.uint8)
    values[5, 5:50] = values[10:13, 5:50] = 255
    values[20:38, 5:50] = 255
    found = values_of(feathered(Image.fromarray(values), 4))

    assert (found[5, 10:40] == 255).all()
    assert (found[11, 10:40] == 255).all()
    assert found[10, 20] == 128
    assert found[20, 20] == 51
    assert values_of(feathered(Image.fromarray(values), 200)).max() == 255


def test_a_soft_mask_stays_soft_below_its_feather() -> None:
    """One thing does not replace the other."""
    found = values_of(feathered(box((60, 50), inside=100), 2))

    assert found.max() == 100
    assert found[10, 20] == 33


def test_the_edge_of_the_picture_is_no_edge_of_the_mask() -> None:
    """What lies beyond it is not kept."""
    values = np.zeros((20, 20), dtype=np.uint8)
    values[:, 10:] = 255
    found = values_of(feathered(Image.fromarray(values), 4))

    assert (found[:, 19] == 255).all()
    assert (found[0] == found[10]).all()
    assert (values_of(feathered(Image.new("L", (9, 9), 255), 4)) == 255).all()


def test_without_a_feather_the_mask_is_itself() -> None:
    """Nothing is computed."""
    mask = box()

    assert feathered(mask, 0) is mask
