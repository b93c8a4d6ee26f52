"""The worker with parts that fail on command: `python -m local.faulty_worker`, with FAULTS_FILE in its environment.

Nothing of the worker is changed. The model fails in hooks of torch's own registry, the encoder in Pillow's. The file
holds one order, the fields of `Order` as JSON, and is read whenever a part is called; an empty one is no order. Beside
it each part has a file of its name, as in FAULTS_FILE.transformer, that grows by a byte with each call.
"""

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, WebPImagePlugin
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import handler
from local.faulty_orders import Order

#: classes of a pipeline's parts, and what orders call them; `save` is the encoder of WebP files
PARTS = {
    "Qwen2_5_VLModel": "text_encoder",
    "QwenImageEncoder3d": "vae_encoder",
    "QwenImageTransformer2DModel": "transformer",
    "QwenImageDecoder3d": "vae_decoder",
}
LATE = "CUDA kernel errors might be asynchronously reported at some other API call."


class UnknownKindError(Exception):
    """Of no class that anybody foresees."""


#: what a part raises
ERRORS: dict[str, Callable[[], Exception]] = {
    "oom": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has no more."),
    "host_oom": MemoryError,
    "device_assert": lambda: torch.AcceleratorError(f"CUDA error: device-side assert triggered\n{LATE}"),
    "illegal_access": lambda: torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered\n{LATE}"),
    "launch": lambda: torch.AcceleratorError("CUDA error: unspecified launch failure"),
    "ecc": lambda: torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "cusolver": lambda: RuntimeError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED"),
    "nvml": lambda: RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"),
    "triton": lambda: RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    "value": lambda: ValueError("a tensor of another shape"),
    "unknown": UnknownKindError,
}


#: what becomes of a part's output
SPOILT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda output: output * float("nan"),
    "black": lambda output: output * 0 - 1,
}


class Faults:
    """Carries out the orders of a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written = 0
        self._calls = self._done = 0
        self._spoil: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._deeds: dict[str, Callable[[Order], object]] = {
            "hang": self._hang,
            "native_hang": lambda _: _libc(ctypes.CDLL),
            # As a library that keeps the interpreter's lock.
            "locked_hang": lambda _: _libc(ctypes.PyDLL),
            "slow": lambda order: time.sleep(order.seconds),
            "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
            "segfault": lambda _: ctypes.string_at(0),
            "exit": lambda _: os._exit(3),
        }

    def before(self, module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        """Torch's hook of every module's call."""
        if part := PARTS.get(type(module).__name__):
            self._called(part, given[0].numel() if given else 0)

    def after(self, module: torch.nn.Module, _given: Any, output: Any) -> Any:
        """Torch's hook of every module's result."""
        if self._spoil is None or type(module).__name__ not in PARTS:
            return None
        spoil, self._spoil = self._spoil, None
        return tuple(map(spoil, output)) if isinstance(output, tuple) else spoil(output)

    def save(self, image: Image.Image, file: Any, name: str | bytes) -> None:
        """Pillow's handler of WebP files."""
        self._called("save", image.width * image.height)
        WebPImagePlugin._save(image, file, name)  # noqa: SLF001 - what it registers

    def _called(self, part: str, size: int) -> None:
        with self._file.with_name(f"{self._file.name}.{part}").open("ab") as calls:
            calls.write(b".")
        order = self._order()
        if order is None or order.component != part or size < order.least:
            return
        self._calls += 1
        if self._calls <= order.after_calls or (order.times is not None and self._done >= order.times):
            return
        self._done += 1
        if order.fault in ERRORS:
            error = ERRORS[order.fault]()
            raise error
        if order.fault in SPOILT:
            self._spoil = SPOILT[order.fault]
        else:
            self._deeds[order.fault](order)

    def _order(self) -> Order | None:
        """The one that stands; each is counted by itself."""
        with self._file.open() as file:
            said, written = file.read(), os.fstat(file.fileno()).st_mtime_ns
        if written != self._written:
            self._written, self._calls, self._done = written, 0, 0
        return Order(**json.loads(said)) if said else None

    def _hang(self, order: Order) -> None:
        """Until the order is another."""
        while self._order() == order:
            time.sleep(0.05)


def _libc(library: Callable[[None], Any]) -> None:
    """One call of C that takes an hour."""
    library(None).sleep(3600)


def main() -> None:
    """Put the faults in, and start the worker."""
    faults = Faults(Path(os.environ["FAULTS_FILE"]))
    register_module_forward_pre_hook(faults.before)
    register_module_forward_hook(faults.after)
    Image.register_save("WEBP", faults.save)
    handler.main()


if __name__ == "__main__":
    main()
