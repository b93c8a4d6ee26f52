"""Networks that compute without numbers, and a count of the bytes that this would take.

Tensors on torch's meta device have a shape and no numbers. Code that looks at numbers fails on them: which tokens are
pictures, how long a prompt is, when a sampler is done. So what is brought there keeps its numbers where there are few:
integers, truth values, and whatever has at most one dimension stay on the CPU, and meet the others by their shapes.
"""

import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Gives the result and a sum of each row, as the kernels of CUDA do.
_fused = aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001 - torch has no public name for it
_number = aten._local_scalar_dense.default  # noqa: SLF001 - nor for this
META = torch.device("meta")
# Of CUDA's flash attention in torch; what has larger heads, or a mask, goes to the memory-efficient kernel.
FLASH_HEAD = 256
# Above it that kernel sums up in memory, in float32, and not in registers.
REGISTERS_HEAD = 128
ALIGNMENT = 512  # bytes, of what torch's allocator gives out


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are made in it, until they are freed.

    What an operator takes for itself, and gives back before it returns, is not seen.

    Attributes:
        stage: what is being done; to be set by who knows it.
        peaks: stage → most bytes at a time.
        live: bytes now.
    """

    def __init__(self, stage: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stage = stage
        self.peaks: dict[str, int] = {}
        self.live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As torch calls it for each operator."""
        del types
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self._count(one.untyped_storage(), given)
        return made

    def _count(self, storage: Any, given: set[int]) -> None:
        # A view has its storage from what it is a view of, which may be a weight.
        if id(storage) in given or id(storage) in self._known:
            return
        size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
        self._known.add(id(storage))
        weakref.finalize(storage, self._freed, id(storage), size)
        self.live += size
        self.peaks[self.stage] = max(self.peaks.get(self.stage, 0), self.live)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class Weightless(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets networks on the meta device compute, as far as shapes go."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As torch calls it for each operator."""
        del types
        named = dict(kwargs or {})
        tensors = [one for one in tree_leaves((args, named)) if isinstance(one, torch.Tensor)]
        shapes_only = any(one.is_meta for one in tensors)
        to = named.get("device")
        if shapes_only and func is _number:
            return True  # asked of a whole picture: whether its numbers are finite
        if shapes_only and to is not None and torch.device(to).type == "cpu":
            return torch.zeros(args[0].shape, dtype=named.get("dtype") or args[0].dtype)
        if not shapes_only:
            if to is not None and torch.device(to) == META and _keeps_numbers(func, args, named):
                named["device"] = torch.device("cpu")
            return func(*args, **named)
        if func is aten.index.Tensor:
            args = (args[0], _places(args[1]))
        return func(*tree_map(_shape_of, args), **tree_map(_shape_of, named))


class AttentionOfCuda(TorchFunctionMode):
    """Attention takes the memory that it does on CUDA: that of the kernel which torch would choose there.

    Nothing computes here that has all weights of attention in memory at a time: where torch would have to, which is
    with a mask and shared keys, this fails.

    Attributes:
        calls: kernel → how often it was counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """As torch calls it for each function."""
        del types
        named = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention:
            made, kernel = _attention(*args, **named)
            self.calls[kernel] += 1
            return made
        if func is torch.tensor and torch.device(named.get("device") or "cpu") == META:
            # On the meta device torch would not look at what it is given.
            return torch.tensor(*args, **{**named, "device": "cpu"}).to(META)
        return func(*args, **named)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 - as torch's
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> tuple[torch.Tensor, str]:
    """What is made, and the kernel that makes it."""
    del dropout_p, scale
    head = query.shape[-1]
    if attn_mask is None and head <= FLASH_HEAD:
        if enable_gqa:  # its kernel reads the shared keys in their place: here only the result counts
            key, value = (one[:, :1].expand(-1, query.shape[1], -1, -1) for one in (key, value))
        return _fused(query, key, value, 0.0, is_causal)[0], "flash"
    if enable_gqa:
        raise ValueError("torch would compute this attention with all its weights in memory at a time")
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype, device=query.device).masked_fill_(attn_mask, 1)
    sums = torch.empty_like(query, dtype=torch.float32) if head > REGISTERS_HEAD else None
    made = _fused(query, key, value, 0.0, is_causal)[0]
    del attn_mask, sums
    return made, "efficient"


def _keeps_numbers(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether what an operator makes on the meta device is rather made on the CPU."""
    made = func(*args, **{**named, "device": META, **({"pin_memory": False} if "pin_memory" in named else {})})
    return made.dim() <= 1 or not (made.is_floating_point() or made.is_complex())


def _shape_of(one: Any) -> Any:
    return one.to(META) if isinstance(one, torch.Tensor) and one.dim() and not one.is_meta else one


def _places(indices: Any) -> list[Any]:
    """Truth values as the places where they are true: how many these are, meta cannot tell."""
    places: list[Any] = []
    for one in indices:
        true = one is not None and one.dtype == torch.bool and not one.is_meta
        places += one.nonzero(as_tuple=True) if true else [one]
    return places
