"""Steps of the preset `balanced`: where the first block says that little changes, the others are not computed.

Done by cache-dit's DBCache, with the settings that vLLM-Omni publishes for this model (one block computed, four steps
of warm-up, threshold 0.24, three steps skipped in a row at most). What it remembers of a picture must not be seen by
the next: `begin` makes it forget.
"""

import logging
import os
from typing import Any

COMPUTED_BLOCKS, WARM_UP_STEPS, THRESHOLD, MOST_IN_A_ROW = 1, 4, 0.24, 3


def enable(transformer: Any) -> None:
    """To be called once for a transformer."""
    _library().enable_cache(transformer, cache_config=_config(guided=True))


def begin(transformer: Any, *, guided: bool) -> None:
    """A new picture begins.

    Args:
        transformer: that `enable` was called for.
        guided: each step has two passes, with the prompt and without it, which remember apart.
    """
    _library().refresh_context(transformer, cache_config=_config(guided=guided))


def skipped(transformer: Any) -> int:
    """Passes of the picture that is being made, or was the last, in which blocks were not computed."""
    (first, *_) = _library().summary(transformer, logging=False)
    return len(first.cached_steps) + len(first.cfg_cached_steps)


def _config(*, guided: bool) -> Any:
    return _library().DBCacheConfig(
        Fn_compute_blocks=COMPUTED_BLOCKS,
        Bn_compute_blocks=0,
        max_warmup_steps=WARM_UP_STEPS,
        residual_diff_threshold=THRESHOLD,
        max_continuous_cached_steps=MOST_IN_A_ROW,
        enable_separate_cfg=guided,
    )


def _library() -> Any:
    """Imported where it is used: it takes a second. Its lines, of its own kind, go to stdout: ours tell what counts."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "ERROR")
    import cache_dit  # noqa: PLC0415

    logging.getLogger("CACHE_DIT").handlers.clear()
    return cache_dit
