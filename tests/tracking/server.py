"""The part of W&B's server that dbexp's runs talk to, on this machine: runs, files and artifacts, kept in memory."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PROJECT = {"id": "1", "name": "dbexp", "entity": {"id": "1", "name": "me"}}


@dataclass
class Run:
    """A run as the server has it."""

    upserted: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What a list of runs calls it."""
        return str(self.upserted["displayName"])

    @property
    def steps(self) -> list[int]:
        """Steps of training that have arrived."""
        return [row["train/step"] for row in self.history if "train/step" in row]


class Service(ThreadingHTTPServer):
    """Answers until `stop`; `Service(old.port, old)` takes an address up again, with what was there before."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0, before: Service | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Requests)
        self.runs: dict[str, Run] = before.runs if before else {}
        self.files: dict[str, bytes] = before.files if before else {}
        self.artifacts: dict[str, dict[str, Any]] = before.artifacts if before else {}
        self.used: list[dict[str, Any]] = before.used if before else []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """For WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Go away: connections are refused."""
        self.shutdown()
        self.server_close()

    def named(self, name: str) -> Run:
        """The one run of a name."""
        (match,) = [run for run in self.runs.values() if run.name == name]
        return match

    def committed(self, kind: str) -> list[dict[str, Any]]:
        """Artifacts of a type that are complete."""
        return [
            artifact
            for artifact in self.artifacts.values()
            if artifact["committed"] and artifact["artifactTypeName"] == kind
        ]

    # -- what clients ask ---------------------------------------------------------------------------------------------

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data of a GraphQL operation; None for those that nobody here needs."""
        answered = getattr(self, f"_{operation}", None)
        return None if answered is None else dict(answered(variables))

    def _UpsertBucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        new = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], Run(asked))
        run.upserted |= {key: value for key, value in asked.items() if value is not None}
        bucket = {"id": "1", "name": asked["name"], "displayName": run.name, "project": _PROJECT, "config": "{}"}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run.history)}, "inserted": new}}

    def _RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        if run is None:
            return {"model": {**_PROJECT, "bucket": None}}
        tail = [json.dumps(row) for row in run.history[-1:]]
        bucket = {
            "id": "1",
            "name": asked["name"],
            "displayName": run.name,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "summaryMetrics": json.dumps(run.summary),
            "config": run.upserted["config"],
            "wandbConfig": '{"t": 1}',
            "tags": [],
            "notes": "",
        }
        return {"model": {**_PROJECT, "bucket": bucket}}

    def _CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/files/{asked['run']}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}

    def _Viewer(self, asked: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "teams": {"edges": []}}}

    def _ArtifactType(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"project": None}

    def _ServerFeaturesQuery(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _CreateArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        sequence = {"id": "s", "latestArtifact": None}
        for name, artifact in self.artifacts.items():  # equal content is the version that is there, with more aliases
            same = all(artifact[key] == asked["input"][key] for key in ("artifactCollectionName", "digest"))
            if same and artifact["committed"]:
                artifact["aliases"] = [*artifact["aliases"], *asked["input"]["aliases"]]
                return {
                    "createArtifact": {"artifact": {"id": name, "state": "COMMITTED", "artifactSequence": sequence}}
                }
        name = f"artifact{len(self.artifacts)}"
        self.artifacts[name] = {**asked["input"], "committed": False, "files": []}
        artifact = {"id": name, "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/manifests/{asked['artifactID']}"
        file: dict[str, Any] = {"id": "1", "uploadUrl": url if asked["includeUpload"] else None, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": asked["artifactID"], "file": file}}}

    def _UpdateArtifactManifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        created = self._CreateArtifactManifest({**asked, "artifactID": asked["artifactManifestID"]})
        return {"updateArtifactManifest": created["createArtifactManifest"]}

    def _CreateArtifactFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for number, file in enumerate(asked["input"]["artifactFiles"]):
            self.artifacts[file["artifactID"]]["files"].append(file["name"])
            url = f"{self.url}/artifacts/{file['artifactID']}/{file['name']}"
            node = {
                "id": str(number),
                "name": file["name"],
                "displayName": file["name"],
                "uploadUrl": url,
                "uploadHeaders": [],
                "storagePath": url,
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.artifacts[asked["artifactID"]]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "d"}}}

    def _UseArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        asked = asked.get("input", asked)
        self.used.append(asked)
        return {"useArtifact": {"artifact": self._ArtifactByID({"id": asked["artifactID"]})["artifact"]}}

    def _ArtifactByID(self, asked: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[asked["id"]]
        project = {**_PROJECT, "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}
        return {
            "artifact": {
                "id": asked["id"],
                "artifactSequence": {"id": "s", "name": artifact["artifactCollectionName"], "project": project},
                "versionIndex": 0,
                "artifactType": {"name": artifact["artifactTypeName"]},
                "description": None,
                "metadata": artifact["metadata"],
                "ttlDurationSeconds": -1,
                "ttlIsInherited": False,
                "tags": [],
                "historyStep": None,
                "state": "COMMITTED" if artifact["committed"] else "PENDING",
                "size": 1,
                "digest": artifact["digest"],
                "commitHash": "c",
                "fileCount": len(artifact["files"]),
                "createdAt": "2026-11-25T10:00:00Z",
                "updatedAt": None,
                "aliases": [],
            }
        }


class _Requests(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client went away
            super().handle()

    def do_PUT(self) -> None:
        self.server.files[self.path] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.match(r"\s*(?:query|mutation)\s+(\w+)", asked["query"])
            answered = self.server.answer(operation[1] if operation else "", asked.get("variables") or {})
            if answered is None:
                self.reply({"errors": [{"message": f"{operation} is not known here"}]})
            else:
                self.reply({"data": answered})
        elif self.path.endswith("/file_stream"):
            self.stream(self.server.runs[self.path.split("/")[-2]], json.loads(body))
        else:
            self.reply({})  # telemetry

    def stream(self, run: Run, sent: dict[str, Any]) -> None:
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                rows = [json.loads(line) for line in chunk["content"]]
                run.history[chunk["offset"] : chunk["offset"] + len(rows)] = rows
            elif name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])
        self.reply({})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Be quiet."""


@contextmanager
def serving() -> Iterator[Service]:
    """A server for the block."""
    service = Service()
    try:
        yield service
    finally:
        service.stop()
