"""Real servers for tests: rclone and moto as S3, each a process of its own with a health poll."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 30


@dataclass(frozen=True)
class S3Server:
    """A running S3-compatible server with one bucket."""

    endpoint: str
    key: str
    secret: str
    bucket: str
    folder: Path | None  # where rclone keeps the objects as files

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def options(self, *, key: str | None = None, secret: str | None = None) -> dict[str, Any]:
        """Return fsspec storage options; ``key`` and ``secret`` override the right ones."""
        return {
            "key": key or self.key,
            "secret": secret or self.secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }


@contextmanager
def rclone_server(
    root: Path | None = None,
    *,
    key: str = "actlake-test-key",
    secret: str = "actlake-test-secret-value",
    read_only: bool = False,
) -> Iterator[S3Server]:
    """Run ``rclone serve s3`` over a folder; it ignores create-only conditions.

    With ``root``, another server's folder, the same objects have a second pair of keys.
    """
    with tempfile.TemporaryDirectory(prefix="rclone-s3-") as folder:
        root = root or Path(folder) / "data"
        (root / "bucket").mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{free_port()}"
        command = [
            tool("rclone"), "serve", "s3", str(root), "--addr", address,
            "--auth-key", f"{key},{secret}", "--config", str(Path(folder) / "rclone.conf"),
            "--cache-dir", str(Path(folder) / "cache"), *(["--read-only"] if read_only else []),
        ]  # fmt: skip
        with _process(command, log=Path(folder) / "log") as process:
            endpoint = f"http://{address}"
            _wait_until_up(endpoint, process, log=Path(folder) / "log")
            yield S3Server(endpoint, key, secret, "bucket", root / "bucket")


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Run ``moto_server``; it honours create-only conditions and checks no credentials."""
    with tempfile.TemporaryDirectory(prefix="moto-s3-") as folder:
        port = free_port()
        command = [tool("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        with _process(command, log=Path(folder) / "log") as process:
            endpoint = f"http://127.0.0.1:{port}"
            _wait_until_up(endpoint, process, log=Path(folder) / "log")
            request = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
            with urllib.request.urlopen(request, timeout=10):
                pass
            yield S3Server(endpoint, "moto-key", "moto-secret-value", "bucket", None)


def tool(name: str) -> str:
    """Return the path of a command of this environment."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        message = f"{name} is not installed; pip install 'actlake[test]'"
        raise RuntimeError(message)
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def _process(command: list[str], *, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RCLONE_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, preexec_fn=_end_with_parent
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def _end_with_parent() -> None:
    """Ask Linux to end this server when the test process dies, however it dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait_until_up(endpoint: str, process: subprocess.Popen[bytes], *, log: Path) -> None:
    """Poll until the server answers HTTP with anything at all."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(endpoint, timeout=2):
                return
        except urllib.error.HTTPError as err:
            err.close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    message = f"{endpoint} did not come up: {log.read_text(errors='replace')[-2000:]}"
    raise RuntimeError(message)
