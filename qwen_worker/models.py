"""The published models this worker knows, each pinned to one commit."""

from types import MappingProxyType

DEFAULT_MODEL = "Qwen/Qwen-Image-Edit"

#: model id → commit of its repository
REVISIONS = MappingProxyType(
    {
        DEFAULT_MODEL: "ac7f9318f633fc4b5778c59367c8128225f1e3de",
        "Qwen/Qwen-Image-Edit-2509": "d3968ef930e841f4c73640fb8afa3b306a78167e",
        "Qwen/Qwen-Image-Edit-2511": "6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9",
    }
)
