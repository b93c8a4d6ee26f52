"""Write docs/request.schema.json from the code: `make schema`."""

import argparse
import json

from local.worker import ROOT
from qwen_worker.schema import json_schema

PATH = ROOT / "docs" / "request.schema.json"


def text() -> str:
    """The file's content."""
    return json.dumps(json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m local.schema_file", description=__doc__).parse_args()
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text())
