"""Stand-in for the Hugging Face Hub: an HTTP server on 127.0.0.1 for the real huggingface_hub client.

Example:

    with StandInHub() as hub:
        hub.add_files("someone/model", {"config.json": "{}"})  # without HTTP
        subprocess.run([...], env=hub.environment(tmp_path))  # a new process uses the stand-in
        hub.connect(monkeypatch, tmp_path)  # the client imported in this process uses it, too
        hub.fail("POST .*/commit/", status=503)  # refuse the next commit
        hub.cut("GET /lfs/", after_bytes=1000)  # interrupt the next download
        assert not hub.matching("POST .*/commit/")  # requests so far

It covers model, dataset, and Space repositories (create, info, tree, refs, history, tags, preupload, LFS, commit,
resolve with ranges). It also covers metadata checks of cards, tokens, private and gated repositories, and collections.
As on the Hub, large files are stored at another origin (`hub.storage`), which must never receive a token.

It does not cover Xet, which the real Hub uses for large files if hf_xet is installed. HF_HUB_DISABLE_XET=1 makes the
client use LFS instead. Also missing are LFS in several parts, pull requests, pages of long listings, gzip, and the
Hub's own rate limits.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import traceback
import types
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIX = re.compile(r"\.(bin|ckpt|h5|msgpack|npy|npz|onnx|parquet|pkl|pt|pth|safetensors|tar|zip)$")
LFS_SIZE = 10 * 1024 * 1024  # smaller files are regular
LICENSES = """apache-2.0 mit openrail bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 agpl-3.0 gpl-3.0 lgpl-3.0 mpl-2.0 unlicense unknown other"""
SDKS = ["gradio", "docker", "static"]
COLORS = ["red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"]
MESSAGES = {
    # by this message the client distinguishes it from a missing repository
    401: "Invalid credentials in Authorization header",
    403: "Forbidden: you don't have the rights to do this",
    404: "Repository not found",
    429: "Too Many Requests",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
    503: "Service Unavailable",
}
REPO = r"(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
FOREIGN = re.compile(r"(?i)^(HF_|HUGGING|TRANSFORMERS_)|_proxy$")  # environment variables that configure the client
ROUTES = []


def route(pattern, write=False):
    """Register a method of StandInHub for a route.

    Args:
        pattern: Regex of "METHOD /path".
        write: Whether the request requires the token.
    """

    def bind(function):
        ROUTES.append((re.compile(pattern), function.__name__, write))
        return function

    return bind


@dataclass
class Reply:
    body: object = b""
    status: int = 200
    headers: dict = field(default_factory=dict)


class HubError(Exception):
    """Error response in the form of the Hub, with a JSON body and headers that the client maps to exceptions."""

    def __init__(self, status, message=None, code=None, headers=None, **body):
        super().__init__(message)
        message = message or MESSAGES.get(status, "error")
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.reply = Reply({"error": message, **body}, status, headers)


@dataclass
class Request:
    method: str
    path: str  # includes the query
    authorization: str | None
    headers: dict
    origin: str  # "hub" or "storage"
    status: int | None = None  # status of the response; None if the connection was cut before it

    def __str__(self):
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    pattern: str
    times: float
    skip: int
    hits: int = 0
    error: HubError | None = None
    after_bytes: int | None = None
    lose_reply: bool = False
    reset: bool = False


class File:
    def __init__(self, path, data):
        self.data = data
        self.lfs = is_lfs(path, len(data), data[:512])

    @cached_property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob(self):
        """Return the content in git, which is the pointer for an LFS file."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        return pointer.encode() if self.lfs else self.data

    @cached_property
    def blob_id(self):
        return hashlib.sha1(b"blob %d\0" % len(self.blob) + self.blob).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.blob_id

    def entry(self, path):
        entry = {"type": "file", "path": path, "oid": self.blob_id, "size": len(self.data)}
        lfs = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.blob)}
        return entry | ({"lfs": lfs} if self.lfs else {})


@dataclass(eq=False, repr=False)
class Commit:
    sha: str
    title: str
    files: dict[str, File]
    parent: "Commit | None"
    date: str

    def history(self):
        return [self, *(self.parent.history() if self.parent else [])]


class Repo:
    def __init__(self, repo_id, kind="model", private=False, sdk=None):
        self.slug = slug_of(kind, repo_id)
        self.private, self.sdk, self.gated = private, sdk, False
        self.lfs: dict[str, bytes] = {}  # all uploaded content, committed or not
        self.branches: dict[str, Commit] = {}
        self.tags: dict[str, Commit] = {}
        self.by_sha: dict[str, Commit] = {}
        self.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")

    @property
    def commits(self):
        """Return the commits of main, newest first, down to the Hub's own "initial commit"."""
        return self.branches["main"].history()

    def commit(self, changes, title, branch="main"):
        """Commit changes to a branch, even if nothing changes, as the Hub does.

        Args:
            changes: {path: bytes}, with None for a file to delete.
            title: Title of the commit.
            branch: Branch to commit to.
        """
        parent = self.branches.get(branch)
        files = dict(parent.files) if parent else {}
        for path, data in changes.items():
            if data is None:
                files.pop(path)
            else:
                files[path] = File(path, data)
                if files[path].lfs:
                    self.lfs[files[path].sha256] = data
        content = [(path, file.etag) for path, file in files.items()], title, time.time_ns()
        sha = hashlib.sha1(repr(content).encode()).hexdigest()
        self.branches[branch] = self.by_sha[sha] = Commit(sha, title, files, parent, now())
        return self.branches[branch]

    def find(self, revision):
        commit = self.branches.get(revision) or self.tags.get(revision) or self.by_sha.get(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def files(self, revision="main"):
        """Return {path: bytes} of a revision."""
        return {path: file.data for path, file in self.find(revision).files.items()}


class StandInHub:
    def __init__(self):
        self.token = "hf_" + "StandIn" * 5  # the only valid token
        self.user = "maintainer"
        self.orgs = ["surgenet"]  # the user can write to their own namespace and to these
        self.repos: dict[str, Repo] = {}  # by id; the id of a Space is "spaces/owner/name"
        self.collections: dict[str, dict] = {}
        self.requests: list[Request] = []
        self.errors: list[str] = []  # errors of the stand-in itself and unknown requests
        self.waits: list[float] = []  # pauses that a connected client would have made
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def __enter__(self):
        self.servers = []
        for origin in ("hub", "storage"):
            server = Server(("127.0.0.1", 0), Handler)
            server.hub, server.origin = self, origin
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self.servers.append(server)
        ports = [server.server_port for server in self.servers]
        # another host name, since huggingface_hub 1.x treats another port alone as the same host
        self.endpoint, self.storage = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    # ---- API for tests

    def add_files(self, repo_id, files, kind="model", title="add files", tag=None):
        """Commit files without HTTP, and create the repository if necessary.

        Args:
            repo_id: Repository, "owner/name".
            files: {path: bytes, text, or local Path}.
            kind: "model", "dataset", or "space".
            title: Title of the commit.
            tag: Tag for the commit.
        """
        slug = slug_of(kind, repo_id)
        repo = self.repos[slug] = self.repos.get(slug) or Repo(repo_id, kind)
        read = {str: str.encode, bytes: bytes}
        repo.commit({path: read.get(type(data), Path.read_bytes)(data) for path, data in files.items()}, title)
        if tag:
            repo.tags[tag] = repo.branches["main"]
        return repo

    def fail(self, pattern, status, times=1, skip=0, headers=None, message=None, code=None):
        """Answer matching requests with an error.

        Args:
            pattern: Regex to find in "METHOD /path?query".
            status: HTTP status of the answer.
            times: Number of requests that fail; math.inf for all.
            skip: Number of matching requests that pass first.
            headers: Headers of the answer.
            message: Message of the error.
            code: X-Error-Code: RepoNotFound, RevisionNotFound, EntryNotFound, or GatedRepo.
        """
        headers = {"Retry-After": "1"} | (headers or {}) if status == 429 else headers
        return self._fault(pattern, times, skip, error=HubError(status, message, code, headers))

    def cut(self, pattern, after_bytes=0, times=1, skip=0, reset=False):
        """Close the connection during a transfer of matching requests.

        The request body is cut if there is one, otherwise the body of the answer.

        Args:
            pattern: Regex to find in "METHOD /path?query".
            after_bytes: Number of bytes to transfer first.
            times: Number of requests to cut; math.inf for all.
            skip: Number of matching requests that pass first.
            reset: Whether to end a download by a TCP reset instead of a plain close.
        """
        return self._fault(pattern, times, skip, after_bytes=after_bytes, reset=reset)

    def lose_reply(self, pattern, times=1, skip=0):
        """Process matching requests, then close the connection without an answer."""
        return self._fault(pattern, times, skip, lose_reply=True)

    def _fault(self, pattern, times, skip, **what):
        self.faults.append(Fault(pattern, times, skip, **what))
        return self.faults[-1]  # its .hits counts the matches

    def matching(self, pattern):
        """Return the requests so far whose "METHOD /path?query" matches a regex."""
        return [request for request in self.requests if re.search(pattern, str(request))]

    def environment(self, home, token=None, **more):
        """Return environment variables that connect a new process to this Hub.

        Args:
            home: Folder for the caches of the process.
            token: Token of the process; False for none.
            more: Additional variables.
        """
        kept = {name: value for name, value in os.environ.items() if not FOREIGN.search(name)}
        return kept | self._settings(home, token) | more

    def _settings(self, home, token):
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        settings["NO_PROXY"] = "127.0.0.1,localhost"
        settings |= {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK")}
        return settings | ({} if token is False else {"HF_TOKEN": token or self.token})

    def connect(self, monkeypatch, home, token=None, wait=False):
        """Connect the imported client and child processes to this Hub for one test.

        huggingface_hub reads its settings at import, so this method changes the stored values.

        Args:
            monkeypatch: Fixture that restores the settings.
            home: Folder for the caches.
            token: Token of the client; False for none.
            wait: Whether the client pauses between retries; otherwise pauses are only recorded in `hub.waits`.
        """
        import huggingface_hub
        from huggingface_hub import constants, file_download, hf_api
        from huggingface_hub.utils import _http

        home = Path(home)
        for name in filter(FOREIGN.search, [*os.environ]):
            monkeypatch.delenv(name)
        for name, value in self._settings(home, token).items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_ASSETS_CACHE": str(home / "assets"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        }.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        # functions such as create_repo are methods of this object; HfApi() reads the constants
        monkeypatch.setattr(hf_api.api, "endpoint", self.endpoint)
        if not wait:
            clock = types.SimpleNamespace(**vars(time))
            clock.sleep = self.waits.append
            monkeypatch.setattr(_http, "time", clock)
            monkeypatch.setattr(file_download, "time", clock)
        if "transformers" in sys.modules:
            from transformers import dynamic_module_utils
            from transformers.utils import hub as transformers_hub

            monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)  # it stores the endpoint
            monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(home / "modules"))
            monkeypatch.setattr(sys, "path", [*sys.path])  # transformers appends to it
            for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
                monkeypatch.delitem(sys.modules, name)
        huggingface_hub.close_session()  # the session may belong to another Hub or use a proxy

    # ---- authorization

    def allowed(self, request):
        """Return True for a valid token and False for none.

        Like the Hub, refuse an invalid token even for public content.

        Raises:
            HubError: 401 for an invalid token.
        """
        if request.authorization is None:
            return False
        if request.authorization != f"Bearer {self.token}":
            raise HubError(401)
        return True

    def repo(self, ask, kind, repo_id):
        repo = self.repos.get(slug_of(kind, repo_id))
        if repo is None or (repo.private and not ask.allowed):
            # without a token the Hub does not reveal whether the repository exists. It sends no code with 401, but the
            # client infers it from an https address
            raise HubError(404 if ask.allowed else 401, code="RepoNotFound", message="Repository not found")
        if ask.write:
            self.check_namespace(repo_id.split("/")[0])
        return repo

    def check_namespace(self, namespace):
        if namespace not in (self.user, *self.orgs):
            raise HubError(403, f"Forbidden: you don't have the rights for the namespace {namespace!r}")

    def answer(self, request, body):
        """Return the reply to a request."""
        parts = urlsplit(request.path)
        if request.origin == "storage":
            return self.on_storage(request, parts.path, body)
        line = f"{request.method} {parts.path}"
        found = ((pattern.fullmatch(line), name, write) for pattern, name, write in ROUTES)
        match, name, write = next((each for each in found if each[0]), (None, None, None))
        if match is None:
            self.errors.append(f"no route for {request}")
            raise HubError(501, f"the stand-in Hub does not know {request}")
        ask = types.SimpleNamespace(body=body, query=parse_qs(parts.query), write=write, path=request.path)
        ask.allowed = self.allowed(request)
        if write and not ask.allowed:
            code = "RepoNotFound" if "repo_id" in match.groupdict() else None  # as in `repo`
            raise HubError(401, "Invalid username or password.", code)
        groups = {key: value and unquote(value) for key, value in match.groupdict().items()}
        reply = getattr(self, name)(ask, **groups)
        return reply if isinstance(reply, Reply) else Reply(reply)

    # ---- accounts and repositories

    @route("GET /api/whoami-v2")
    def whoami(self, ask):
        if not ask.allowed:
            raise HubError(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "admin"} for name in self.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "stand-in", "role": "write"}}
        return {"type": "user", "id": "1", "name": self.user, "fullname": self.user, "orgs": orgs, "auth": auth}

    @route("GET /api/agent-harnesses")
    def agent_harnesses(self, ask):
        """Answer the client, which asks once a day for its User-Agent."""
        return {"standardEnvVars": [], "harnesses": {}}

    @route("POST /api/repos/create", write=True)
    def create_repo(self, ask):
        what = json.loads(ask.body)
        namespace, kind = what.get("organization") or self.user, what.get("type") or "model"
        self.check_namespace(namespace)
        private = bool(what.get("private")) or what.get("visibility") == "private"
        repo = Repo(f"{namespace}/{what['name']}", kind, private, what.get("sdk"))
        reply = {"url": f"{self.endpoint}/{repo.slug}", "name": f"{namespace}/{what['name']}"}
        if repo.slug in self.repos:
            raise HubError(409, f"You already created this {kind} repo", **reply)
        self.repos[repo.slug] = repo
        return reply

    @route(f"GET /api/{REPO}(?:/revision/(?P<revision>[^/]+))?")
    def info(self, ask, kind, repo_id, revision):
        repo = self.repo(ask, kind, repo_id)
        commit = repo.find(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in ask.query:
            for sibling in siblings:
                entry = commit.files[sibling["rfilename"]].entry("")
                sibling |= {"blobId": entry["oid"], "size": entry["size"], "lfs": None}
                if lfs := entry.get("lfs"):
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        card = card_of(commit.files["README.md"].data.decode())[0] if "README.md" in commit.files else {}
        tags = [*card.get("tags", []), *(f"license:{card[key]}" for key in ["license"] if key in card)]
        named = {key: card[key] for key in ("pipeline_tag", "library_name") if key in card}
        times = {"createdAt": repo.commits[-1].date, "lastModified": commit.date}
        flags = {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0}
        what = {"id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": commit.sha, "sdk": repo.sdk}
        return what | {"tags": tags, "cardData": card, "siblings": siblings} | named | times | flags

    @route(f"GET /api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
    def tree(self, ask, kind, repo_id, revision, folder):
        commit = self.repo(ask, kind, repo_id).find(revision)
        start = f"{folder}/" if folder else ""
        recursive = ask.query.get("recursive", ["false"])[0].lower() == "true"
        entries = entries_of(commit, start)
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        return [entry for path, entry in sorted(entries.items()) if recursive or "/" not in path[len(start) :]]

    @route(f"POST /api/{REPO}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, ask, kind, repo_id, revision):
        entries = entries_of(self.repo(ask, kind, repo_id).find(revision))
        paths = parse_qs(ask.body.decode()).get("paths", [])
        return [entries[path] for path in paths if path in entries]

    @route(f"GET /api/{REPO}/refs")
    def refs(self, ask, kind, repo_id):
        repo = self.repo(ask, kind, repo_id)

        def listed(folder, found):
            return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": c.sha} for n, c in found.items()]

        tags, branches = listed("tags", repo.tags), listed("heads", repo.branches)
        return {"branches": branches, "converts": [], "tags": tags, "pullRequests": []}

    @route(f"GET /api/{REPO}/commits/(?P<revision>[^/]+)")
    def commits(self, ask, kind, repo_id, revision):
        history = self.repo(ask, kind, repo_id).find(revision).history()
        more = {"message": "", "authors": [{"user": self.user}]}
        return [{"id": commit.sha, "title": commit.title, "date": commit.date, **more} for commit in history]

    @route(f"POST /api/{REPO}/tag/(?P<revision>[^/]+)", write=True)
    def create_tag(self, ask, kind, repo_id, revision):
        repo, name = self.repo(ask, kind, repo_id), json.loads(ask.body)["tag"]
        if name in repo.tags:
            raise HubError(409, f"Reference already exists: refs/tags/{name}")
        repo.tags[name] = repo.find(revision)
        return {}

    # ---- upload

    @route("POST /api/validate-yaml")
    def validate_yaml(self, ask):
        what = json.loads(ask.body)
        _, errors, warnings = card_of(what["content"], what["repoType"])
        errors, warnings = ([{"message": text} for text in texts] for texts in (errors, warnings))
        return Reply({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    @route(f"POST /api/{REPO}/preupload/(?P<revision>[^/]+)", write=True)
    def preupload(self, ask, kind, repo_id, revision):
        """Return which files use LFS and the oid of existing files.

        The client uses the oid to skip unchanged files.
        """
        files = self.repo(ask, kind, repo_id).find(revision).files
        reply = []
        for file in json.loads(ask.body)["files"]:
            path = file["path"]
            lfs = is_lfs(path, file["size"], base64.b64decode(file["sample"]))
            oid = {"oid": files[path].etag} if path in files else {}
            reply.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **oid})
        return {"files": reply}

    @route(r"POST /(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", write=True)
    def lfs_batch(self, ask, kind, repo_id):
        repo, objects = self.repo(ask, kind or "model", repo_id), json.loads(ask.body)["objects"]
        for item in objects:
            if item["oid"] not in repo.lfs:
                verify = self.endpoint + ask.path.replace("/batch", "/verify")
                upload = {"href": f"{self.storage}/lfs/{repo.slug}/{item['oid']}", "header": {}}
                item["actions"] = {"upload": upload, "verify": {"href": verify, "header": {}}}
        return {"transfer": "basic", "objects": objects}

    @route(r"POST /(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/verify", write=True)
    def lfs_verify(self, ask, kind, repo_id):
        repo, item = self.repo(ask, kind or "model", repo_id), json.loads(ask.body)
        if len(repo.lfs.get(item["oid"], b"")) != item["size"]:
            raise HubError(404, f"{item['oid']} is not there, or of another size")
        return {}

    @route(f"POST /api/{REPO}/commit/(?P<revision>[^/]+)", write=True)
    def commit(self, ask, kind, repo_id, revision):
        repo = self.repo(ask, kind, repo_id)
        head, *operations = [json.loads(line) for line in ask.body.splitlines()]
        if revision not in repo.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = repo.branches[revision]
        if head["value"].get("parentCommit", parent.sha) != parent.sha:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        changes = {}
        for operation in operations:
            key, value = operation["key"], operation["value"]
            path = value["path"]
            if key == "file":
                changes[path] = base64.b64decode(value["content"])
                if is_lfs(path, len(changes[path]), b""):
                    raise HubError(400, f"Your push was rejected because {path} must be stored with LFS.")
            elif key == "lfsFile":
                if value["oid"] not in repo.lfs:
                    message = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
                    raise HubError(400, message)
                changes[path] = repo.lfs[value["oid"]]
            else:
                inside = [p for p in parent.files if p == path or (key == "deletedFolder" and p.startswith(path))]
                if not inside:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                changes |= dict.fromkeys(inside)
        if changes.get("README.md") and (errors := card_of(changes["README.md"].decode(), kind)[1]):
            raise HubError(400, "Your push was rejected: " + "; ".join(errors))
        commit = repo.commit(changes, head["value"]["summary"], revision)
        url = f"{self.endpoint}/{repo.slug}/commit/{commit.sha}"
        return {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""}

    # ---- download

    @route(
        "(?:GET|HEAD) /(?:(?P<kind>dataset|space)s/)?(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
    )
    def resolve(self, ask, kind, repo_id, revision, path):
        repo = self.repo(ask, kind or "model", repo_id)
        if repo.gated and not ask.allowed:
            raise HubError(401, f"Access to {kind or 'model'} {repo_id} is restricted.", "GatedRepo")
        commit = repo.find(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        file = commit.files[path]
        if not file.lfs:
            return Reply(file.data, headers=headers | {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"})
        headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
        return Reply(status=302, headers=headers | {"Location": f"{self.storage}/lfs/{repo.slug}/{file.sha256}"})

    def on_storage(self, request, path, body):
        """Serve the storage of large files.

        The real storage uses signed addresses, so a token must never be sent here.
        """
        slug, oid = re.fullmatch("/lfs/(.+)/([0-9a-f]{64})", path).groups()
        if request.authorization:
            self.errors.append(f"a token was sent to the storage: {request}")
        repo = self.repos[slug]
        if request.method == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                raise HubError(400, "the content does not have this sha256")
            repo.lfs[oid] = body
            return Reply()
        return Reply(repo.lfs[oid], headers={"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    # ---- collections

    @route("POST /api/collections", write=True)
    def create_collection(self, ask):
        what = json.loads(ask.body)
        self.check_namespace(what["namespace"])
        for slug, found in self.collections.items():
            if (found["owner"]["name"], found["title"]) == (what["namespace"], what["title"]):
                raise HubError(409, "This collection already exists", slug=slug)
        words = re.sub(r"[^a-z0-9]+", "-", what["title"].lower()).strip("-")
        slug = f"{what['namespace']}/{words}-{len(self.collections):024x}"
        owner = {"name": what["namespace"], "type": "user" if what["namespace"] == self.user else "org"}
        texts = {"slug": slug, "title": what["title"], "description": what.get("description"), "theme": "orange"}
        flags = {"private": what.get("private", False), "position": 0, "upvotes": 0}
        self.collections[slug] = texts | flags | {"owner": owner, "lastUpdated": now(), "items": []}
        return self.collections[slug]

    def collection(self, ask, slug):
        found = self.collections.get(slug)
        if found is None or (found["private"] and not ask.allowed):
            raise HubError(404, "Collection not found")
        if ask.write:
            self.check_namespace(slug.split("/")[0])
        return found

    @route("GET /api/collections")
    def list_collections(self, ask):
        """Return the collections with at most four items each, as the Hub does."""
        owners, found = ask.query.get("owner"), self.collections.values()
        found = [each for each in found if ask.allowed or not each["private"]]
        found = [each | {"items": each["items"][:4]} for each in found]
        found = [each for each in found if not owners or each["owner"]["name"] in owners]
        return [{key: value for key, value in each.items() if key != "position"} for each in found]

    @route("GET /api/collections/(?P<slug>[^/]+/[^/]+)")
    def get_collection(self, ask, slug):
        return self.collection(ask, slug)

    @route("POST /api/collections/(?P<slug>[^/]+/[^/]+)/items", write=True)
    def add_collection_item(self, ask, slug):
        found, what = self.collection(ask, slug), json.loads(ask.body)
        item = what["item"]
        if any((old["id"], old["type"]) == (item["id"], item["type"]) for old in found["items"]):
            raise HubError(409, "This item is already in the collection")
        if slug_of(item["type"], item["id"]) not in self.repos:
            raise HubError(404, f"{item['type']} {item['id']} not found")
        note = {"note": {"text": what["note"]}} if "note" in what else {}
        found["items"].append({"_id": f"{len(found['items']):024x}", "position": len(found["items"]), **item, **note})
        found["lastUpdated"] = now()
        return found


def slug_of(kind, repo_id):
    return repo_id if kind == "model" else f"{kind}s/{repo_id}"


def now():
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def is_lfs(path, size, sample):
    return bool(LFS_SUFFIX.search(path)) or size > LFS_SIZE or b"\0" in sample


def entries_of(commit, start=""):
    """Return {path: listing entry} of all files and folders below start."""
    entries = {}
    for path, file in commit.files.items():
        if path.startswith(start):
            entries[path] = file.entry(path)
            for parent in Path(path).parents[:-1]:
                if f"{parent}/".startswith(start) and f"{parent}/" != start:
                    oid = hashlib.sha1(f"{commit.sha}{parent}".encode()).hexdigest()
                    entries[str(parent)] = {"type": "directory", "path": str(parent), "oid": oid, "size": 0}
    return entries


def card_of(text, kind="model"):
    """Return the metadata of a README.md, with the errors and warnings of the Hub.

    Only the most common rules of the Hub are implemented.
    """
    match = re.match(r"\s*---[\r\n]+([\S\s]*?)[\r\n]+---(?:[\r\n]|$)", text)
    if not match:
        return {}, [], ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return {}, [f"bad YAML: {error}"], []
    if not isinstance(card, dict):
        return {}, ["the metadata must be a mapping"], []
    errors, warnings = [], []

    def listed(key):
        value = card.get(key, [])
        return value if isinstance(value, list) else [value]

    if bad := [name for name in listed("license") if name not in LICENSES.split()]:
        errors.append(f'"license" must be one of {LICENSES.split()}, not {bad}')
    errors += [f'"{key}" must be an array' for key in ("tags", "widget") if not isinstance(card.get(key, []), list)]
    if kind == "space":
        for key, values in {"sdk": SDKS, "colorFrom": COLORS, "colorTo": COLORS}.items():
            if card.get(key, values[0]) not in values:
                errors.append(f'"{key}" must be one of {values}')
        if len(card.get("short_description", "")) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    named = r"[\w.-]+(/[\w.-]+)?"
    for key, problems in (("base_model", errors), ("datasets", warnings)):
        bad = [name for name in listed(key) if not re.fullmatch(named, str(name))]
        problems += [f'"{key}" with value "{name}" is not valid. Use an id from the Hub.' for name in bad]
    return card, errors, warnings


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # clients keep their connections open


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # the client closed the connection
            self.close_connection = True

    def respond(self):
        hub = self.server.hub
        headers = dict(self.headers)
        request = Request(self.command, self.path, self.headers["Authorization"], headers, self.server.origin)
        with hub.lock:
            hub.requests.append(request)
            fault = self.fault(str(request))
        length = int(self.headers["Content-Length"] or 0)
        chunked = self.headers["Transfer-Encoding"] == "chunked"
        if fault.after_bytes is not None and (length or chunked):
            self.rfile.read(min(fault.after_bytes, length or 1))
            return self.drop(reset=True)  # closing with unread data resets the connection anyway
        body = b"".join(iter(self.chunk, b"")) if chunked else self.rfile.read(length)
        try:
            if fault.error:
                raise fault.error
            with hub.lock:
                reply = hub.answer(request, body)
        except HubError as error:
            reply = error.reply
        except Exception:  # answer with 501, since the client retries other 5xx errors
            hub.errors.append(traceback.format_exc())
            reply = Reply({"error": "the stand-in Hub failed: " + traceback.format_exc()}, 501)
        if fault.lose_reply:
            return self.drop(fault.reset)
        self.send(request, reply, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = respond

    def fault(self, line):
        for fault in self.server.hub.faults:
            if re.search(fault.pattern, line) and fault.times > 0:
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                fault.hits += 1
                return fault
        return Fault("", 0, 0)

    def chunk(self):
        data = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return data

    def send(self, request, reply, fault):
        body, status, headers = reply.body, reply.status, dict(reply.headers)
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"] or "")
        if status == 200 and asked and "Accept-Ranges" in headers:
            first, last = asked.groups()
            size, start = len(body), int(first) if first else len(body) - int(last)
            stop = min(int(last) + 1, size) if first and last else size
            if start >= size:
                status, body, headers = 416, b"", {"Content-Range": f"bytes */{size}"}
            else:
                status, body = 206, body[start:stop]
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: fault.after_bytes])
        if fault.after_bytes is not None:
            self.drop(fault.reset)

    def drop(self, reset=False):
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def log_message(self, *_):
        pass
