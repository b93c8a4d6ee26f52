"""Answers that hold their files, and the limit that RunPod keeps."""

import json
import math
from collections.abc import Sequence

from qwen_worker.errors import bad_input
from qwen_worker.request import ImageRequest

INLINE_LIMIT = 10_000_000  # bytes of an answer: RunPod's documented limit for a payload of /run
META_ROOM = 8192  # bytes of a result that is neither its file nor what its request said: more than the longest has


def check_answer(request: ImageRequest, sizes: Sequence[int]) -> None:
    """Refuse to promise an answer that RunPod would lose.

    Args:
        request: may ask for files in the answer.
        sizes: of the files in bytes, or bounds of them.

    Raises:
        BadInput: the answer could be too long.
    """
    if not request.inline:
        return
    files = [math.ceil(size / 3) * 4 for size in [sizes[0], *sizes]]  # the first is told twice: `result`, `results`
    said = len(json.dumps([request.prompt, request.negative_prompt, request.lora]))
    answer = sum(files) + len(files) * (META_ROOM + said)
    if answer > INLINE_LIMIT:
        problem = (
            f"the answer could have {answer} bytes, and RunPod keeps {INLINE_LIMIT}: ask for url, for a smaller size, "
            "fewer pictures, webp, or jpeg of a quality below 90"
        )
        raise bad_input([{"field": "output", "problem": problem}])
