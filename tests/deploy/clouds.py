"""The APIs of three providers over HTTP, whose machines are real processes.

A machine that is created runs its start command in bash with the environment that the order gave it
and what the provider adds, and dies with all its children when it is destroyed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ACCOUNT_KEY = "account-key-of-the-user"
MACHINE_KEY = "key-of-the-machine-itself"


@dataclass
class Cloud:
    """One account; what its attributes say happens to the next requests."""

    folder: Path
    path: str  # where the machines find their programs
    fail_after_create: int = 0  # creations that succeed and answer 500
    never_up: int = 0  # creations whose machine never does anything
    refuse_destroy: int = 0  # requests to destroy that are answered 503
    fail_list: int = 0  # requests to list that are answered 503
    prices: tuple[float, ...] = (1.0, 2.0)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    destroyed_by: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def create(self, label: str, start: list[str], env: dict[str, str], provider: str) -> str:
        number = str(1000 + len(self.created))
        work = self.folder / number
        work.mkdir(parents=True)
        own = {
            "vast": {"CONTAINER_ID": number, "CONTAINER_API_KEY": MACHINE_KEY},
            "runpod": {"RUNPOD_POD_ID": number, "RUNPOD_API_KEY": MACHINE_KEY},
            "lambda": {},
        }[provider]
        self.created.append(number)
        self.machines[number] = {"label": label}
        if self.never_up:
            self.never_up -= 1
            return number
        script = [part.replace("/tmp/actlake-machine.sh", str(work / "start.sh")) for part in start]
        self.processes[number] = subprocess.Popen(
            script,
            env={"PATH": self.path, "HOME": str(work), "ACTLAKE_WORK": str(work / "job"),
                 "ACTLAKE_RETRY_SECONDS": "0.2", **env, **own},
            start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return number

    def destroy(self, number: str, key: str) -> bool:
        if self.machines.pop(number, None) is None:
            return False
        self.destroyed_by[number] = key
        self.kill(number)
        return True

    def kill(self, number: str) -> None:
        """End a machine's processes, its commands' own groups included."""
        process = self.processes.pop(number, None)
        if process is None:
            return
        mark = f"HOME={self.folder / number}".encode()
        for stat in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in stat.read_bytes().split(b"\0"):
                    os.kill(int(stat.parent.name), signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)

    def state(self, number: str) -> str:
        process = self.processes.get(number)
        return "loading" if process is None else "running" if process.poll() is None else "exited"


def answer(cloud: Cloud, method: str, path: str, body: Any, key: str) -> tuple[int, Any]:
    """Return (status, JSON) as the documentation of the three providers has it."""
    destroys = method == "DELETE" or path.endswith("/terminate")
    if key != ACCOUNT_KEY and not (key == MACHINE_KEY and destroys):
        return 401, {"error": f"the key {key} is not known"}
    if destroys and cloud.refuse_destroy:
        cloud.refuse_destroy -= 1
        return 503, {"error": "busy"}
    if method == "GET" and cloud.fail_list:
        cloud.fail_list -= 1
        return 503, {"error": "busy"}
    parts = path.strip("/").split("/")
    made = None
    if (method, path) == ("POST", "/api/v0/bundles/"):
        return 200, {"offers": [
            {"id": 7 + i, "gpu_name": "A100 SXM4", "num_gpus": 1, "gpu_ram": 81920,
             "dph_total": price, "geolocation": "Sweden, SE"}
            for i, price in enumerate(cloud.prices)
        ]}  # fmt: skip
    if method == "PUT" and parts[:3] == ["api", "v0", "asks"]:
        made = cloud.create(body["label"], ["bash", "-c", body["onstart"]], body["env"], "vast")
        value: Any = {"success": True, "new_contract": int(made)}
    elif (method, path) == ("GET", "/api/v1/instances/"):
        return 200, {"instances": [
            {"id": int(n), "label": m["label"], "dph_total": 1.0, "actual_status": cloud.state(n)}
            for n, m in cloud.machines.items()
        ], "next_token": None}  # fmt: skip
    elif (method, path) == ("POST", "/graphql"):
        kinds = [("NVIDIA A100 80GB PCIe", "High"), ("NVIDIA H100 PCIe", None)]
        return 200, {"data": {"gpuTypes": [
            {"id": name, "displayName": name.split(" ", 1)[1], "memoryInGb": 80,
             "secureCloud": True, "communityCloud": False, "securePrice": cloud.prices[0],
             "communityPrice": None, "lowestPrice": {"stockStatus": stock}}
            for name, stock in kinds
        ]}}  # fmt: skip
    elif (method, path) == ("POST", "/pods"):
        start = [*body["dockerEntrypoint"], *body["dockerStartCmd"]]
        made = cloud.create(body["name"], start, body["env"], "runpod")
        value = {"id": made, "costPerHr": "1.0", "desiredStatus": "RUNNING"}
    elif (method, path) == ("GET", "/pods"):
        return 200, [
            {"id": n, "name": m["label"], "costPerHr": "1.0",
             "desiredStatus": "EXITED" if cloud.state(n) == "exited" else "RUNNING"}
            for n, m in cloud.machines.items()
        ]  # fmt: skip
    elif (method, path) == ("GET", "/instance-types"):
        return 200, {"data": {"gpu_1x_a100_sxm4": {
            "instance_type": {"name": "gpu_1x_a100_sxm4", "description": "1x A100 (40 GB SXM4)",
                              "gpu_description": "A100 (40 GB SXM4)",
                              "price_cents_per_hour": int(cloud.prices[0] * 100),
                              "specs": {"gpus": 1}},
            "regions_with_capacity_available": [{"name": "us-east-1"}],
        }}}  # fmt: skip
    elif (method, path) == ("POST", "/instance-operations/launch"):
        script = cloud.folder / f"user-data-{len(cloud.created)}"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(body["user_data"].replace("/tmp/actlake-machine.sh", f"{script}.sh"))
        made = cloud.create(body["name"], ["bash", str(script)], {}, "lambda")
        value = {"data": {"instance_ids": [made]}}
    elif (method, path) == ("GET", "/instances"):
        status = {"running": "active", "exited": "active", "loading": "booting"}
        return 200, {"data": [
            {"id": n, "name": m["label"], "status": status[cloud.state(n)],
             "instance_type": {"price_cents_per_hour": 100}}
            for n, m in cloud.machines.items()
        ]}  # fmt: skip
    elif path.endswith("/terminate"):
        done = [n for n in body["instance_ids"] if cloud.destroy(n, key)]
        return (200 if done else 404), {"data": {"terminated_instances": done}}
    elif method == "DELETE":
        return (200, {"success": True}) if cloud.destroy(parts[-1], key) else (404, {"error": "no"})
    else:
        return 404, {"error": f"no {method} {path}"}
    if cloud.fail_after_create:
        cloud.fail_after_create -= 1
        return 500, {"error": "something went wrong"}
    return 200, value


@contextlib.contextmanager
def serve(folder: Path, *, path: str) -> Iterator[Cloud]:
    """Serve an account on 127.0.0.1; its machines end with it."""
    cloud = Cloud(folder, path)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            where = urllib.parse.urlsplit(self.path).path
            key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            with cloud.lock:
                cloud.requests.append((self.command, where, body))
                status, value = answer(cloud, self.command, where, body, key)
            data = json.dumps(value).encode()
            with contextlib.suppress(OSError):  # a machine that destroyed itself does not listen
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = handle_one

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    cloud.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
        for number in list(cloud.processes):
            cloud.kill(number)
