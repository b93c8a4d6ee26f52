"""A stand-in of RunPod's REST v2, as far as endpoints go: it keeps them, and refuses what the published schema does.

Each body is validated against tests/data/runpod_rest_v2.json; problems are told as in RFC 9457. It can also be told to
fail: see `LocalRest`.
"""

import asyncio
import itertools
import json
from dataclasses import dataclass
from typing import Any

import jsonschema
from aiohttp import web
from aiohttp.typedefs import Handler

from local.aio_server import AioServer
from local.runpod_faults import Fault
from local.worker import ROOT

KEY = "rest-key"
READ_ONLY_KEY = "read-only-key"
SCHEMA = json.loads((ROOT / "tests/data/runpod_rest_v2.json").read_text())
CREATED = "2026-11-21T12:00:00Z"
LINES = ("loading", "worker ready")


def problems(name: str, body: Any) -> list[str]:
    """What a schema has against a body."""
    validator = jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(body)]


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    body: Any
    headers: dict[str, str]


class LocalRest(AioServer):
    """The API in a thread of this process. Use it as a context manager.

    Attributes:
        endpoints: by their ids.
        workers: endpoint's id → its workers.
        requests: what was asked, in order.
        fault: befalls requests before anything is done; `lost` after it: its answer does not arrive.
        lines: of every worker's log.
        breaks: a log's stream ends after its lines, which else stays open.
        chatters: a log's stream never ends, and neither do its lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.workers: dict[str, list[dict[str, Any]]] = {}
        self.requests: list[Asked] = []
        self.fault: Fault | None = None
        self.lost: Fault | None = None
        self.lines: list[str] = list(LINES)
        self.breaks = False
        self.chatters = False
        self._numbers = itertools.count(1)
        self._releases: dict[str, list[dict[str, Any]]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """Of `python -m ops.deploy`."""
        return {"RUNPOD_REST_URL": f"http://127.0.0.1:{self.port}", "RUNPOD_API_KEY": KEY}

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._at_the_door])
        path = "/v2/serverless"
        app.add_routes(
            [
                web.get(path, self._list),
                web.post(path, self._create),
                web.get(path + "/{id}", self._get),
                web.patch(path + "/{id}", self._update),
                web.delete(path + "/{id}", self._delete),
                web.get(path + "/{id}/workers", self._list_workers),
                web.get(path + "/{id}/releases", self._list_releases),
                web.get(path + "/{id}/workers/{worker}/logs", self._log),
            ]
        )
        return app

    @web.middleware
    async def _at_the_door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.requests.append(Asked(request.method, request.path_qs, body, dict(request.headers)))
        if self.fault and self.fault.happens():
            return await self.fault.befall(request)
        said = request.headers.get("Authorization")
        if said not in {f"Bearer {KEY}", f"Bearer {READ_ONLY_KEY}"}:
            return _problem(401, "Unauthorized", "missing bearer token")
        if said == f"Bearer {READ_ONLY_KEY}" and request.method != "GET":
            return _problem(403, "Forbidden", "access denied")
        if "id" in request.match_info and request.match_info["id"] not in self.endpoints:
            return _problem(404, "Not Found", "endpoint not found")
        answer = await handler(request)
        if self.lost and self.lost.happens():
            return await self.lost.befall(request)
        return answer

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response({"endpoints": list(self.endpoints.values())})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if refused := problems("CreateEndpointRequest", body) or _conflicts(body):
            return _problem(422, "Unprocessable Entity", "Request validation failed.", refused)
        endpoint_id = f"ep{next(self._numbers)}"
        made: dict[str, Any] = {
            "registry": None,
            "dataCenterIds": [],
            "networkVolumes": [],
            "flashboot": "OFF",
            "timeout": 300000,
        }
        made |= {"id": endpoint_id, "createdAt": CREATED, **body}
        made["gpu"] = {"allowedCudaVersions": [], "minCudaVersion": None, **body["gpu"]}
        self.endpoints[endpoint_id] = made
        self._releases[endpoint_id] = []
        self._release(made, {}, {})
        return web.json_response(made, status=201)

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self.endpoints[request.match_info["id"]])

    async def _update(self, request: web.Request) -> web.Response:
        body = await request.json()
        there = self.endpoints[request.match_info["id"]]
        new = {**there, **body}
        if "gpu" in body:
            new["gpu"] = {**(there["gpu"] or {}), **body["gpu"]}
        if refused := problems("UpdateEndpointRequest", body) or _conflicts(new):
            return _problem(422, "Unprocessable Entity", "Request validation failed.", refused)
        self._release(there, there, body)
        there |= new
        return web.json_response(there)

    async def _delete(self, request: web.Request) -> web.Response:
        del self.endpoints[request.match_info["id"]]
        return web.Response(status=204)

    async def _list_workers(self, request: web.Request) -> web.Response:
        workers = self.workers.get(request.match_info["id"], [])
        states = ("running", "idle", "initializing", "throttled", "unhealthy")
        summary = {state: sum(one["status"] == state.upper() for one in workers) for state in states}
        return web.json_response({"workers": workers, "summary": {**summary, "total": len(workers)}})

    async def _list_releases(self, request: web.Request) -> web.Response:
        rollout = {"inProgress": False, "workersOnLatest": 0, "workersTotal": 0, "percentOnLatest": 0}
        return web.json_response({"rollout": rollout, "releases": self._releases[request.match_info["id"]]})

    async def _log(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        after = int(request.headers.get("Last-Event-ID", "0"))
        first = after or max(0, len(self.lines) - int(request.query.get("tail", "100")))
        for number, line in enumerate(self.lines[first:], first + 1):
            event = json.dumps({"source": "container", "line": line, "ts": CREATED})
            await response.write(f"id: {number}\ndata: {event}\n\n".encode())
        while self.chatters and request.transport is not None and not request.transport.is_closing():
            await response.write(b'data: {"source": "container", "line": "still here"}\n\n')
            await asyncio.sleep(0.02)
        if not self.breaks:
            while request.transport is not None and not request.transport.is_closing():
                await response.write(b": ping\n\n")
                await asyncio.sleep(0.2)
        return response

    def _release(self, endpoint: dict[str, Any], old: dict[str, Any], body: dict[str, Any]) -> None:
        releases = self._releases[endpoint["id"]]
        diff = [{"field": name, "old": old.get(name), "new": new} for name, new in body.items()]
        number = len(releases) + 1
        made = {"id": f"rel{number}", "version": number, "source": "MANUAL", "createdAt": CREATED}
        releases.insert(0, {**made, "workerCount": 0, "diff": diff})


def _conflicts(body: dict[str, Any]) -> list[str]:
    """What the schema's descriptions forbid, and its types do not."""
    found = []
    if body["scaling"]["type"] == "REQUEST_COUNT" and "idleTimeout" in body.get("workers", {}):
        found.append("$.workers.idleTimeout: not with requestCount")
    gpu = body.get("gpu") or {}
    if gpu.get("allowedCudaVersions") and gpu.get("minCudaVersion"):
        found.append("$.gpu: minCudaVersion and allowedCudaVersions are exclusive")
    return found


def _problem(status: int, title: str, detail: str, errors: list[str] | None = None) -> web.Response:
    told = {"title": title, "status": status, "detail": detail, **({"errors": errors} if errors else {})}
    return web.json_response(told, status=status, content_type="application/problem+json")
