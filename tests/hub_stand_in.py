"""A Hugging Face Hub on this machine: what its client asks for, answered as the Hub does."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOREVER = 10**9


@dataclass
class HubStandIn:
    """The state of the server, for tests to set and to look into.

    Attributes:
        repos: name of a repository -> name of a file -> its content. All that is unknown is
            absent, which is also what the Hub says of others' private repositories.
        refused: name of a repository -> status and code that the Hub refuses it with.
        breaks: name of a file -> how often its transfer still breaks off half-way.
        ranges: name of a file -> the Range headers it was asked for with.
        etags: name of a file -> the SHA-256 that is announced instead of its own.
        private: repositories that only `writers` see.
        writers: tokens that may write.
        created: repositories that were made -> whether as private ones.
        revisions: of files that were asked for.
        whole: files that are sent from the beginning, whatever Range says.
        stored: SHA-256 -> content of what was uploaded to the host of large files.
        tokens: what was shown to the host that keeps large files; as with the Hub it is another.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, list[str | None]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)
    created: dict[str, bool] = field(default_factory=dict)
    revisions: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    endpoint: str = ""

    @property
    def storage(self):
        """The host that keeps large files."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def etag(self, name, content):
        """Of a large file (here: of weights) its SHA-256, of others what git calls them."""
        if is_large(name):
            return self.etags.get(name) or hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name):
    return name.endswith((".safetensors", ".pt", ".bin", ".png"))


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            return self.tell(path.removeprefix("api/models/"))
        hub = self.server.hub
        if path.startswith("storage/"):
            _, org, repo, name = path.split("/", 3)
            hub.tokens.add(self.headers.get("Authorization"))
            return self.send_file(name, hub.repos[f"{org}/{repo}"][name])
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        hub.revisions.add(revision)
        if self.refuse(repo, revision):
            return None
        content = hub.repos[repo].get(name)
        if content is None:
            return self.send(404, headers={"X-Error-Code": "EntryNotFound"})
        if not is_large(name):
            return self.send_file(name, content)
        headers = {
            "Location": f"{hub.storage}/storage/{repo}/{name}",
            "X-Linked-ETag": f'"{hub.etag(name, content)}"',
            "X-Linked-Size": str(len(content)),
        }
        return self.send(302, headers=headers)

    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def refuse(self, repo, revision):
        hub = self.server.hub
        refused = hub.refused.get(repo)
        hidden = repo in hub.private and self.token() not in hub.writers
        if not refused and (hidden or repo not in hub.repos):
            refused = (401, "RepoNotFound")
        if not refused and revision not in ("main", "v1", COMMIT):
            refused = (404, "RevisionNotFound")
        if refused:
            self.send(refused[0], headers={"X-Error-Code": refused[1]})
        return refused

    def tell(self, rest):
        """What the repository holds."""
        org, name, *what = rest.split("/")
        repo = f"{org}/{name}"
        kind, revision = (what[0], what[1]) if len(what) > 1 else ("revision", "main")
        if self.refuse(repo, revision):
            return None
        files = self.server.hub.repos[repo]
        if kind == "tree":
            return self.send_json([self.entry(name, content) for name, content in files.items()])
        siblings = [{"rfilename": name} for name in files]
        return self.send_json({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})

    def entry(self, name, content):
        entry = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        etag = self.server.hub.etag(name, content)
        if not is_large(name):
            return entry | {"oid": etag}
        return entry | {"lfs": {"oid": etag, "size": len(content), "pointerSize": 100}}

    def send_file(self, name, content):
        hub = self.server.hub
        headers = {"ETag": f'"{hub.etag(name, content)}"', "Accept-Ranges": "bytes"}
        asked, first = self.headers.get("Range"), 0
        answered = asked and name not in hub.whole
        if answered:
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        body, last = content[first:], len(content)
        if self.command == "GET":
            hub.ranges.setdefault(name, []).append(asked)
            if hub.breaks.get(name, 0) > 0:
                hub.breaks[name] -= 1
                last = len(content) // 2
        self.send(206 if answered else 200, body, headers, content[first:last])

    def send_json(self, content):
        self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(self, status, body=b"", headers=(), sent=None):
        """Answer with `body`, of which only `sent` goes off."""
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **dict(headers)}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path.strip("/")
        if path == "api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if self.token() not in self.server.hub.writers:
            return self.send(401, headers={"X-Error-Message": "Invalid credentials"})
        if path == "api/repos/create":
            return self.create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.store(json.loads(body))
        org, name, what = path.removeprefix("api/models/").split("/")[:3]
        if what == "preupload":
            asked = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if is_large(f["path"]) else "regular" for f in asked}
            answer = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path, mode in modes.items()
            ]
            return self.send_json({"files": answer})
        return self.commit(f"{org}/{name}", body)

    def store(self, asked):
        """Where the client is to put large files."""
        href = f"{self.server.hub.storage}/upload/"
        objects = [
            o | {"actions": {"upload": {"href": href + o["oid"], "header": {}}}}
            for o in asked["objects"]
        ]
        self.send_json({"transfer": "basic", "objects": objects})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = urlsplit(self.path).path.removeprefix("/upload/")
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.hub.stored[oid] = content
        self.server.hub.tokens.add(self.headers.get("Authorization"))
        self.send(200)

    def create(self, asked):
        repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        # Newer clients say it in the first way, older ones in the second.
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.hub.created[repo] = private
        self.server.hub.repos.setdefault(repo, {})
        self.send_json({"url": f"{self.server.hub.endpoint}/{repo}", "id": repo, "name": repo})

    def commit(self, repo, body):
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.server.hub.repos[repo][entry["value"]["path"]] = content
            elif entry["key"] == "lfsFile":
                value = entry["value"]
                self.server.hub.repos[repo][value["path"]] = self.server.hub.stored[value["oid"]]
        url = f"{self.server.hub.endpoint}/{repo}/commit/{COMMIT}"
        self.send_json({"commitUrl": url, "commitOid": COMMIT, "success": True})

    def log_message(self, *arguments):
        """Keep quiet."""
