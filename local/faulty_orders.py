"""What a faulty worker is told to do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Order:
    """One fault of `local.faulty_worker`.

    Attributes:
        component: the part that fails: text_encoder, vae_encoder, transformer, vae_decoder, or save, which writes WebP
            files.
        fault: what it does, by its name there.
        times: how often; None: whenever it is called.
        after_calls: how many calls pass before the first.
        least: calls whose first argument is smaller pass, in elements of the tensor or pixels of the picture.
        seconds: of a slow part.
    """

    component: str
    fault: str
    times: int | None = 1
    after_calls: int = 0
    least: int = 0
    seconds: float = 0
