"""What a job has used up, and what it brought."""

from dataclasses import dataclass


@dataclass
class Spent:
    """Of one job, or of several together.

    Attributes:
        operation: of the job, once it is known.
        gpu_s: seconds that the GPU was its own.
        sources: pictures that it named, the mask too; `cache_hits` of them came out of the bucket.
        bytes_in: of its sources.
        bytes_out: of its results, also of those that were found.
    """

    operation: str = "unknown"
    gpu_s: float = 0.0
    sources: int = 0
    cache_hits: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, other: "Spent") -> None:
        """That too."""
        self.gpu_s += other.gpu_s
        self.sources += other.sources
        self.cache_hits += other.cache_hits
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out

    def told(self) -> dict[str, float]:
        """All but the operation, as log and `health` tell it."""
        return {
            "gpu_s": round(self.gpu_s, 3),
            "sources": self.sources,
            "cache_hits": self.cache_hits,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }
