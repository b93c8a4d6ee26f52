"""RunPod's local HTTP API on local parts: `make serve`."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from local import children, tiny_model, worker
from local.bucket import LocalBucket
from local.demo import example_picture
from local.web import ImageHost


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    port = parser.parse_args().port
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as name, LocalBucket(Path(name) / "bucket") as bucket, ImageHost() as host:
        model = tiny_model.make(Path(name) / "model")
        said = {"image_url": host.put("/image.jpg", example_picture()), "prompt": "make it warmer"}
        print(
            "When the worker is ready, try:\n\n"
            f"  curl -s http://127.0.0.1:{port}/runsync -H 'Content-Type: application/json' "
            f"-d '{json.dumps({'input': said})}'\n",
            flush=True,
        )
        command = [sys.executable, str(worker.ROOT / "handler.py"), "--rp_serve_api", "--rp_api_port", str(port)]
        process = children.start(command, worker.environment(model, bucket.environment), cwd=name)
        try:
            process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
