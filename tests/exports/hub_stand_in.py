"""The part of the hub's HTTP interface that pushing and loading use, on loopback, with repositories in memory."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "standin0123456789abcdef"
COMMIT = "0" * 39 + "1"


@dataclass
class Repository:
    private: bool = False
    files: dict = field(default_factory=dict)


@dataclass
class Hub:
    """What the server holds and has been asked."""

    url: str = ""
    repositories: dict = field(default_factory=dict)
    blobs: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    refuses_commits: bool = False


@contextmanager
def hub_stand_in():
    """Serve until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, status, body=b"", **headers):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            is_authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if self.command != "PUT" and not is_authorized:
                self.reply(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials in Authorization header")
                return
            respond(self, hub, path.strip("/").split("/"), body)

        do_GET = do_HEAD = do_POST = do_PUT = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def respond(request, hub, parts, body):
    """Answer one authorized request."""
    match parts:
        case ["api", "repos", "create"]:
            asked = json.loads(body)
            repo_id = "/".join(part for part in (asked.get("organization") or "me", asked["name"]) if part)
            if repo_id in hub.repositories:
                request.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{repo_id}"})
                return
            hub.repositories[repo_id] = Repository(asked.get("private") or asked.get("visibility") == "private")
            request.reply(200, {"url": f"{hub.url}/{repo_id}", "name": repo_id})
        case ["api", "validate-yaml"]:
            request.reply(200, {"warnings": [], "errors": []})
        case ["lfs", oid]:
            assert hashlib.sha256(body).hexdigest() == oid
            hub.blobs[oid] = body
            request.reply(200)
        case [owner, name, "info", "lfs", "objects", "batch"]:
            objects = json.loads(body)["objects"]
            actions = [{**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}} for each in objects]
            request.reply(200, {"transfer": "basic", "objects": actions})
        case ["api", "models", owner, name, *rest]:
            repository = hub.repositories.get(f"{owner}/{name}")
            if repository is None:
                missing(request, "RepoNotFound")
                return
            respond_about(request, hub, repository, f"{owner}/{name}", rest, body)
        case [owner, name, "resolve", _, file]:
            content = hub.repositories[f"{owner}/{name}"].files.get(file) if f"{owner}/{name}" in hub.repositories else None
            if content is None:
                missing(request, "EntryNotFound")
                return
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            request.reply(200, content, ETag=etag, X_Repo_Commit=COMMIT, X_Linked_Size=str(len(content)))
        case _:
            missing(request, "EntryNotFound")


def missing(request, code):
    request.reply(404, {"error": "not found"}, X_Error_Code=code, X_Error_Message="not found")


def respond_about(request, hub, repository, repo_id, rest, body):
    """Answer a request about one repository."""
    match rest:
        case [] | ["revision", _]:
            siblings = [{"rfilename": name} for name in repository.files]
            request.reply(200, {"id": repo_id, "private": repository.private, "sha": COMMIT, "siblings": siblings, "tags": []})
        case ["preupload", _]:
            files = json.loads(body)["files"]
            kinds = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
            modes = [{"path": path, "uploadMode": kind, "shouldIgnore": False} for path, kind in kinds.items()]
            request.reply(200, {"files": modes})
        case ["commit", _]:
            if hub.refuses_commits:
                request.reply(403, {"error": "no"}, X_Error_Message="You have read access but not the required permissions")
                return
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = hub.blobs[value["oid"]]
            url = f"{hub.url}/{repo_id}/commit/{COMMIT}"
            request.reply(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        case ["tree", _, *_]:
            files = repository.files.items()
            request.reply(200, [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files])
        case _:
            missing(request, "EntryNotFound")
