"""What the networks made of prompts and pictures, for the next edit that has the same ones.

What is found again is bit by bit what would be computed again: the same weights saw the same numbers.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Ready:
    """The pictures of a request as the pipeline takes them, and all that is computed of them without the GPU.

    Attributes:
        references: in the order of the request.
        mask: of the canvas.
        digests: of the references' sizes and pixels.
        tensors: id of a reference, or of the mask → 1 x channels x height x width.
        seen: the references as the text encoder sees them.
        words: text → what its processor makes of it and of what is seen.
    """

    references: Sequence[Image.Image] = ()
    mask: Image.Image | None = None
    digests: tuple[bytes, ...] = ()
    tensors: Mapping[int, torch.Tensor] = field(default_factory=dict)
    seen: Sequence[Image.Image] = ()
    words: Mapping[str, Any] = field(default_factory=dict)


class Computed:
    """Tensors by what they were computed of, those that were used last, on the device that computed them.

    Args:
        max_bytes: of all together; 0 keeps none.

    Attributes:
        ready: of the edit that is being done, if one is.
    """

    def __init__(self, max_bytes: int) -> None:
        self.ready: Ready | None = None
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    @property
    def size(self) -> int:
        """Bytes of what is kept."""
        return sum(size for _, size in self._kept.values())

    def __contains__(self, key: Hashable) -> bool:
        """Whether it is kept."""
        return key in self._kept

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What is kept under this key, or is computed now. Nobody may write into it."""
        if key in self._kept:
            self._kept.move_to_end(key)
            found: T = self._kept[key][0]
            return found
        value = compute()
        self._kept[key] = value, _bytes(value)
        while self.size > self._max_bytes:
            self._kept.popitem(last=False)
        return value

    def clear(self) -> None:
        """Keep nothing, as where memory has run out."""
        self._kept.clear()


def _bytes(value: Any) -> int:
    """Of the tensors in it; of those that share their memory, once."""
    return sum({one.data_ptr(): one.nbytes() for one in _storages(value)}.values())


def _storages(value: Any) -> Iterable[torch.UntypedStorage]:
    if isinstance(value, torch.Tensor):
        yield value.untyped_storage()
    elif isinstance(value, Mapping):
        yield from _storages(value.values())
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for one in value:
            yield from _storages(one)


def picture_key(ready: Ready) -> Hashable:
    """Of what the text encoder sees in the references together."""
    return "pictures", ready.digests


def remember_pictures(text_encoder: torch.nn.Module, computed: Computed) -> None:
    """Have a text encoder of transformers look at the same pictures once: for each prompt it would do so anew.

    Of what it makes of them only the features that it goes on with are kept; asked by a pipeline it would return the
    output of each layer too.
    """

    def look(module: Any, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if computed.ready and named.get("pixel_values") is not None:
            pixels, grid = named.pop("pixel_values"), named["image_grid_thw"]
            key = picture_key(computed.ready)
            named["mm_encoder_outputs"] = {"image": computed.get(key, lambda: _features(module, pixels, grid))}
        return positional, named

    text_encoder.register_forward_pre_hook(look, with_kwargs=True)


def _features(text_encoder: Any, pixels: torch.Tensor, grid: torch.Tensor) -> Any:
    made = text_encoder.get_image_features(pixels, grid, return_dict=True)
    # What the last layer made is of a larger size, and nobody's.
    return type(made)(**{name: value for name, value in made.items() if name != "last_hidden_state"})
