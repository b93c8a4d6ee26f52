"""Write out/sbom.json, what the image and its models are made of, as CycloneDX: `make sbom`.

The packages are those of requirements.lock, with their hashes. The image holds no model: those that the worker knows
are named beside them. The same files make the same bytes.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from local.worker import ROOT
from qwen_worker.family import FAMILY, TEXT_TO_IMAGE, Row

PATH = ROOT / "out" / "sbom.json"
LOCK = "requirements.lock"
OPTIONS = ("--pyproject", "pyproject.toml", "--output-reproducible", "--spec-version", "1.6")


def text() -> str:
    """The file's content, checked against CycloneDX's own schema.

    Raises:
        ValueError: it does not keep to that schema.
    """
    bill = json.loads(_packages())
    bill["components"] += [_component(row) for row in (*FAMILY.values(), *TEXT_TO_IMAGE.values())]
    said = json.dumps(bill, indent=1, sort_keys=True) + "\n"
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(said):
        raise ValueError(f"out/sbom.json would be wrong: {problem}")
    return said


def _packages() -> str:
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", *OPTIONS, LOCK]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _component(row: Row) -> dict[str, Any]:
    """A model, by the commit that is loaded; without one if the operator has to name it."""
    pinned = f"@{row.revision}" if row.revision else ""
    licence = {"id": row.licence} if row.licence == "Apache-2.0" else {"name": row.licence}
    group, _, name = row.id.partition("/")
    return {
        "bom-ref": f"model-{row.id}",
        "type": "machine-learning-model",
        "group": group,
        "name": name,
        "purl": f"pkg:huggingface/{row.id}{pinned}",
        "licenses": [{"license": licence}],
        # The image brings none: which one is used is a setting.
        "scope": "optional",
        **({"version": row.revision} if row.revision else {}),
    }


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m local.sbom", description=__doc__).parse_args()
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text())
    print(f"{PATH.relative_to(ROOT)} is written")
