"""Rotary positions in real numbers, for compiled blocks: torch's compiler leaves complex ones to slower kernels."""

import sys
from typing import Any

import torch


def make_real(transformer: Any) -> None:
    """Have a transformer's blocks turn queries and keys by real numbers; what they compute is the same."""
    module: Any = sys.modules[type(transformer).__module__]
    own = module.apply_rotary_emb_qwen

    def rotated(x: torch.Tensor, positions: torch.Tensor, **said: Any) -> torch.Tensor:
        """As the library's, of complex positions too: those of a transformer that is not compiled."""
        return own(x, positions, **said) if positions.is_complex() else turn(x, positions)

    if own.__module__ != __name__:  # another transformer's has been replaced
        module.apply_rotary_emb_qwen = rotated
    transformer.pos_embed.register_forward_hook(lambda _module, _given, made: _real(made))


def turn(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Turn pairs of numbers.

    Args:
        x: batch x tokens x heads x numbers, of which each two are a pair.
        positions: tokens x pairs x 2: cosine and sine.
    """
    one, other = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cosine, sine = positions.unsqueeze(1).unbind(-1)
    return torch.stack((one * cosine - other * sine, one * sine + other * cosine), dim=-1).flatten(3).type_as(x)


def _real(made: Any) -> Any:
    if isinstance(made, torch.Tensor):
        return torch.view_as_real(made) if made.is_complex() else made
    return tuple(_real(one) for one in made)
