"""How the image check runs a command: in other files, which it may not write, as a user who is not root."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local.worker import ROOT

LOOK = """
import json, os
def writes(place):
    try:
        open(place + "/file", "w").close()
    except OSError as error:
        return error.strerror
print(json.dumps([os.getuid(), os.getcwd(), writes("/"), writes("/tmp"), os.environ.get("OWN"), os.environ["GIVEN"],
                  sorted(os.listdir("/volume"))]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, as `make image-check`, which is for root")
def test_a_command_sees_its_own_files_and_writes_none(tmp_path: Path) -> None:
    """Files of this machine take the place of the image's."""
    root, volume, temporary = (tmp_path / name for name in ("root", "volume", "tmp"))
    for folder in (root / "dev", root / "proc", volume, temporary):
        folder.mkdir(parents=True)
    (volume / "model").touch()
    temporary.chmod(0o1777)
    # Where Python is, and what it and the tools of the check need.
    machine = ["/usr", "/bin", "/lib", "/lib64", "/etc", sys.base_prefix, sys.prefix]
    places = [f"{place}:{place}" for place in dict.fromkeys(machine) if Path(place).exists()]
    config = {
        "User": "nobody",
        "WorkingDir": "/volume",
        "Env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin", "OWN=the image's", "GIVEN=the image's"],
        "Cmd": [sys.executable, "-c", LOOK],
    }
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("nobody:x:65534:65534::/:/bin/sh\n")
    image = tmp_path / "image.json"
    image.write_text(json.dumps({"root": str(root), "config": config}))
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "local" / "in_image.py"), str(image)),
            *(f"{volume}:/volume", f"{temporary}:/tmp"),
            *places,  # last: this checkout may be below /tmp
        ],
        env={**os.environ, "GIVEN": "the machine's"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        65534, "/volume", "Read-only file system", None, "the image's", "the machine's", ["model"],
    ]  # fmt: skip
    # What was mounted is gone with the process.
    assert not any(Path(root / "volume").iterdir())
