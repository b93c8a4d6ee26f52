"""Run an image's command in its own files, as RunPod would: without an engine, so that no engine's defaults help it.

    python local/in_image.py IMAGE.json [FOLDER:PLACE ...]

IMAGE.json is {"root": folder of the image's files, "config": its configuration as OCI writes it}. The root is mounted
read-only, each FOLDER at its PLACE; the user is the image's own. It becomes this process, with this environment over
that of the image; the network is the machine's own.
"""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

# Variables that say where things are on this machine.
MACHINES = {"PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE"}
# In a namespace of its own: what is mounted is gone when the process is.
SCRIPT = """
set -e
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
while [ "$1" != -- ]; do mkdir -p "$root${1#*:}"; mount --bind "${1%%:*}" "$root${1#*:}"; shift; done
shift
mount --rbind /dev "$root/dev"
mount -t proc none "$root/proc"
mount -o remount,ro,bind "$root"
exec "$@"
"""


def ids(root: Path, user: str) -> str:
    """USER of a Dockerfile as uid:gid: a name, or a number."""
    entries = [line.split(":") for line in (root / "etc/passwd").read_text().splitlines()]
    (found,) = (entry for entry in entries if user in {entry[0], entry[2]})
    return f"{found[2]}:{found[3]}"


def main() -> NoReturn:
    """Become the container's process."""
    image = json.loads(Path(sys.argv[1]).read_text())
    root, config, places = Path(image["root"]), image["config"], sys.argv[2:]
    variables = dict(variable.split("=", 1) for variable in config["Env"])
    variables |= {name: value for name, value in os.environ.items() if name not in MACHINES}
    command = [
        *("unshare", "--mount", "sh", "-c", SCRIPT, "sh", str(root), *places, "--"),
        *("chroot", f"--userspec={ids(root, config['User'])}", str(root)),
        *("env", "--chdir", config["WorkingDir"], *config["Cmd"]),
    ]
    os.execvpe(command[0], command, variables)  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
