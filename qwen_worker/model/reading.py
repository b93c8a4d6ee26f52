"""Prompts and pictures as the text encoder gets them, made beside the GPU."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from qwen_worker.model.computed import Computed, picture_key

_LOCK = threading.Lock()


class Reading:
    """Mixin of processors: has read the prompts of the edit that is being done before."""

    computed: Computed | None = None
    _patches: Any = None

    def read(self, texts: Sequence[str], images: Sequence[Image.Image], dtype: torch.dtype) -> dict[str, BatchFeature]:
        """Each text with all the pictures; for any thread, beside an edit too."""
        patches, marks = super()._process_images(list(images), return_tensors="pt")  # type: ignore[misc]
        # As the text encoder would do first.
        patches["pixel_values"] = patches["pixel_values"].to(dtype)
        read = super().__call__  # type: ignore[misc]
        with _LOCK:  # a tokenizer keeps how it was asked to cut and to fill
            self._patches = patches, marks
            try:
                return {
                    text: read(text=[text], images=list(images), padding=True, return_tensors="pt") for text in texts
                }
            finally:
                self._patches = None

    def _process_images(self, images: Any, **said: Any) -> Any:
        return self._patches or super()._process_images(images, **said)  # type: ignore[misc]

    def __call__(self, images: Any = None, text: Any = None, **said: Any) -> BatchFeature:
        """As the processor's."""
        computed = self.computed
        if computed is None or computed.ready is None:
            made: BatchFeature = super().__call__(images=images, text=text, **said)  # type: ignore[misc]
            return made
        words: BatchFeature = computed.ready.words[text[0]]
        if picture_key(computed.ready) in computed:
            # What has been looked at need not be brought to the GPU.
            words = BatchFeature({**words, "pixel_values": words["pixel_values"][:0]})
        return words
