"""One edit by itself, with all three parts of it in this thread; and the library's own way of doing one."""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from qwen_worker.model.edit import Editor, untold
from qwen_worker.request import ImageRequest
from qwen_worker.schema import Size


def edited(
    editor: Editor,
    request: ImageRequest,
    canvas: Size,
    references: Sequence[Image.Image],
    mask: Image.Image | None = None,
    *,
    cancelled: threading.Event | None = None,
    told: Callable[[int, int], None] = untold,
    left_s: float = math.inf,
) -> Image.Image:
    """The picture that an editor makes; arguments and errors are those of its parts."""
    ready = editor.ready(request, references, mask)
    values = editor.edit(request, canvas, ready, cancelled or threading.Event(), told, left_s)
    return editor.picture(values, ready)


def plain(pipeline: Any) -> Any:
    """Diffusers' own pipeline on the parts of one of ours."""
    own = next(one for one in type(pipeline).__mro__ if one.__module__.startswith("diffusers."))
    made = own(**pipeline.components)
    made.set_progress_bar_config(disable=True)
    return made
