"""A real S3 server as a child process: juicefs' gateway, which is MinIO's own front end over a local folder.

It answers with S3's error codes, refuses tampered and expired links, and keeps what it acknowledged over kill -9.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import urllib3
from minio import Minio
from minio.error import MinioException

from local import children

ACCESS_KEY = "local-access-key"
SECRET_KEY = "local-secret-key"  # noqa: S105  # pragma: allowlist secret
BUCKET = "pictures"
REGION = "us-west-000"
START_TIMEOUT_S = 20.0
JUICEFS = Path(sys.executable).parent / "juicefs"


class LocalBucket:
    """One bucket on one port, kept in `folder`. Use it as a context manager, or `start` and `kill` it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self.port = children.free_port()
        self.client = Minio(
            self.host,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            region=REGION,
            secure=False,
            http_client=urllib3.PoolManager(timeout=5, retries=False),
        )

    @property
    def host(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The worker's variables for this bucket."""
        return {
            "S3_ENDPOINT": self.host,
            "S3_ACCESS_KEY": ACCESS_KEY,
            "S3_SECRET_KEY": SECRET_KEY,
            "S3_BUCKET": BUCKET,
            "S3_REGION": REGION,
            "S3_SECURE": "false",
        }

    def start(self) -> None:
        """Start the server, make the bucket, and return when it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        database = f"sqlite3://{self._folder}/meta.db"
        log = self._folder / "juicefs.log"
        base = [str(JUICEFS), "--no-agent"]
        storage = ["--storage", "file", "--bucket", f"{self._folder}/data/", "--trash-days", "0"]
        subprocess.run([*base, "format", *storage, database, "store"], check=True, capture_output=True)
        options = [
            "--multi-buckets", "--keep-etag", "--object-meta", "--no-usage-report", "--no-banner", "--backup-meta", "0",
            "--cache-size", "0", "--buffer-size", "64", "--cache-dir", f"{self._folder}/cache",
            "--metrics", "127.0.0.1:0", "--log", str(log),
        ]  # fmt: skip
        environment = {**os.environ, "MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        with log.open("a") as output:
            self._process = children.start(
                [*base, "gateway", *options, database, self.host], environment, stdout=output, stderr=output
            )
        self._wait()

    def kill(self) -> None:
        """Stop the server as a power cut would."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def keys(self, prefix: str = "") -> list[str]:
        """The keys below a prefix."""
        return [item.object_name or "" for item in self.client.list_objects(BUCKET, prefix, recursive=True)]

    def unfinished(self) -> list[str]:
        """The keys of uploads that were begun in parts and never ended."""
        listed = self.client._list_multipart_uploads(BUCKET)  # noqa: SLF001 - minio-py has no other word for it
        return [upload.object_name for upload in listed.uploads]

    def _wait(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if not self.client.bucket_exists(BUCKET):
                    self.client.make_bucket(BUCKET)
            except (MinioException, urllib3.exceptions.HTTPError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
            else:
                return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
