"""Weights & Biases online: logins, and a live run against a small server on this machine that then goes away.

Each case is a process of its own, because wandb reads its server and its login once per process.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "0123456789abcdef" * 2 + "fedcba98"


def environment(home: Path, **extra: str) -> dict[str, str]:
    """This process's, with a home that has no logins and no settings."""
    kept = {name: value for name, value in os.environ.items() if name != "NETRC" and not name.startswith("WANDB_")}
    return kept | {"HOME": str(home)} | extra


# --------------------------------------------------------------------------------------------------------- logins

ASK = """
import json, pathlib, sys
from dbexp import tracking
from dbexp.config import Config
cfg = Config()
cfg.tracking.mode = "online"
pathlib.Path(sys.argv[1]).write_text(json.dumps(tracking.problems(cfg)))
"""


def problems_on_a_terminal(home: Path, **extra: str) -> list[str]:
    """What `problems` says on a terminal, where wandb could ask for a key and wait for ever."""
    answer = home / "answer.json"
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", ASK, str(answer)],
            env=environment(home, **extra),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            check=True,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    said: list[str] = json.loads(answer.read_text())
    return said


def test_a_missing_login_is_told(tmp_path: Path) -> None:
    (said,) = problems_on_a_terminal(tmp_path)
    assert said.startswith("tracking.mode=online: there is no W&B login")
    assert "wandb login" in said


def test_a_key_that_cannot_be_one_is_told_and_not_shown(tmp_path: Path) -> None:
    (said,) = problems_on_a_terminal(tmp_path, WANDB_API_KEY="hunter2")
    assert said.startswith("tracking.mode=online: W&B refuses the login it finds")
    assert "hunter2" not in said


def test_a_login_in_netrc_is_found(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert problems_on_a_terminal(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ live runs

TRACK = """
import sys
from pathlib import Path
from dbexp import tracking
from dbexp.config import Config
tracking._FINISH_SECONDS = 3.0
cfg = Config()
cfg.dataset.name, cfg.model.name = "dog3", "random"
cfg.tracking.mode = "online"
with tracking.start(cfg, folder=Path(sys.argv[1]), name="rank=4", group="10-00-00") as tracker:
    tracker.train([{"step": step, "loss": 1 / step} for step in range(1, 6)])
    print("trained", flush=True)
    sys.exit(sys.stdin.readline().strip() or None)
"""


class Service(ThreadingHTTPServer):
    """The part of W&B's server that a run without files talks to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.upserted: list[dict[str, Any]] = []
        self.streamed: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Requests(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        content = json.loads(body)
        if self.path == "/graphql":
            self.reply({"data": self.graphql(content["query"], content.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self.server.streamed.append(content)
            self.reply({})
        else:
            self.send_error(404)

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        operation = re.match(r"\s*(?:query|mutation)\s+(\w+)", query)
        if operation is not None and operation[1] == "UpsertBucket":
            self.server.upserted.append(variables)
            project = {"id": "1", "name": "dbexp", "entity": {"id": "1", "name": "me"}}
            bucket = {"id": "1", "name": variables["name"], "displayName": variables["displayName"], "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "config": "{}", "historyLineCount": 0}, "inserted": True}}
        if operation is not None and operation[1] == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": None} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Be quiet."""


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@contextmanager
def training(folder: Path, service: Service) -> Iterator[subprocess.Popen[str]]:
    """A process that has logged its training and waits for a line: empty to end well, else what it dies of."""
    command = [sys.executable, "-c", TRACK, str(folder / "run")]
    env = environment(folder, WANDB_BASE_URL=service.url, WANDB_API_KEY=KEY)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "trained\n"
            yield process
        finally:
            process.kill()


def test_a_live_run_arrives_and_leaves_no_key_behind(tmp_path: Path, service: Service) -> None:
    with training(tmp_path, service) as process:
        process.communicate("diverged\n", timeout=60)
    assert process.returncode == 1
    first = service.upserted[0]
    assert (first["displayName"], first["groupName"], first["project"]) == ("rank=4", "10-00-00", "dbexp")
    assert json.loads(first["config"])["dataset.name"] == {"value": "dog3"}
    chunks = [chunk["files"] for chunk in service.streamed if "files" in chunk]
    rows = [json.loads(row) for files in chunks for row in files.get("wandb-history.jsonl", {}).get("content", [])]
    assert [row["train/step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [chunk["exitcode"] for chunk in service.streamed if chunk.get("complete")] == [1]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_connection_lost_on_the_way_costs_a_warning(tmp_path: Path, service: Service) -> None:
    with training(tmp_path, service) as process:
        service.shutdown()
        service.server_close()
        _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert "W&B lacks the end of the run (TimeoutError" in said
    assert "Traceback" not in said
    assert list((tmp_path / "run" / "tracking").rglob("*.wandb")) != []  # for `wandb sync`
