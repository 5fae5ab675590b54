# SPDX-License-Identifier: Apache-2.0
"""The routes of a Hub of our own.

Paths, bodies and headers follow huggingface_hub 2.4 (`hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`) without Xet,
which is an optional transport of the same files.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import Repo, Stored, git_oid, metadata_errors, parents


TOKEN, READ_TOKEN = "hf_writes", "hf_reads"
USERS = {TOKEN: ("writer", "write"), READ_TOKEN: ("reader", "read")}
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".jpg", ".png")
DATE = "2026-01-01T00:00:00.000Z"


class HubHandler(BaseHTTPRequestHandler):
    """One request. Routes are methods `METHOD_name`, found in `ROUTES`."""

    hub: "HubServer"  # noqa: F821 (hub_server.py, which imports this)
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    ##########
    # Plumbing
    ##########
    def answer(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.hub.requests.append(f"{self.command} {parts.path}")
        fault = next((f for f in self.hub.faults if f.method == self.command and re.search(f.path, parts.path)), None)
        if fault:
            fault.times -= 1
            if fault.times <= 0:
                self.hub.faults.remove(fault)
            if fault.cut_after is not None:
                self.rfile.read(fault.cut_after)
                if fault.reached is not None:
                    fault.reached.set()
                    while self.rfile.read(1 << 16):  # until the client is gone
                        pass
                self.close_connection = True
                self.connection.close()
                return
            self.body = self.read_body()
            return self.send_json({"error": fault.message}, fault.status, {"X-Error-Message": fault.message})
        self.body = self.read_body()
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if match and self.command in method.split("|"):
                groups = {key: unquote(value) if value else value for key, value in match.groupdict().items()}
                with self.hub.lock:
                    return getattr(self, name)(**groups)
        return self.send_json({"error": f"no such route: {self.command} {parts.path}"}, 404)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return b"".join(self.read_chunks())

    def read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def send_bytes(self, content: bytes, status: int = 200, headers: dict | None = None):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, content, status: int = 200, headers: dict | None = None):
        headers = {"Content-Type": "application/json", **(headers or {})}
        self.send_bytes(json.dumps(content).encode(), status, headers)

    def refuse(self, status: int, code: str, message: str):
        self.send_json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    @property
    def user(self) -> tuple[str, str] | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def find_repo(self, kind: str, name: str) -> Repo | None:
        """The repo, or None after a refusal has been sent."""
        repo = self.hub.repos.get((kind.removesuffix("s"), name))
        if repo is None or (repo.private and self.user is None):
            self.refuse(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def may_write(self) -> bool:
        if self.user and self.user[1] == "write":
            return True
        self.refuse(403 if self.user else 401, "", "You don't have the rights to do this")
        return False

    ##########
    # Accounts, repos, metadata
    ##########
    def whoami(self):
        if self.user is None:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        name, role = self.user
        token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
        self.send_json({"type": "user", "name": name, "orgs": [{"name": "org"}], "auth": token})

    def login(self):
        """The device flow of `hf auth login` (RFC 8628), with somebody who confirms at once in a browser."""
        codes = {"device_code": "device", "user_code": "user", "verification_uri": f"{self.hub.url}/device"}
        self.send_json(codes | {"expires_in": 60, "interval": 0})

    def give_token(self):
        self.send_json({"access_token": TOKEN, "token_type": "bearer"})

    def create(self):
        if not self.may_write():
            return None
        request = json.loads(self.body)
        name = f"{request['organization'] or self.user[0]}/{request['name']}"
        kind = request.get("type", "model")
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.hub.repos:
            return self.send_json({"error": "You already created this repo", "url": url}, 409)
        repo = self.hub.repos[kind, name] = Repo(request.get("visibility") == "private")
        repo.commit("initial commit", {".gitattributes": Stored(b"*.safetensors filter=lfs\n", None)})
        return self.send_json({"url": url, "name": name})

    def validate_yaml(self):
        request = json.loads(self.body)
        errors = metadata_errors(request["content"], request["repoType"])
        self.send_json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def info(self, kind, name, revision=None):
        repo = self.find_repo(kind, name)
        if repo is None:
            return None
        commit = repo.find(revision or "main")
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = {"id": name, "sha": commit.oid, "private": repo.private, "gated": False, "disabled": False}
        content |= {"lastModified": DATE, "createdAt": DATE, "tags": [], "downloads": 0, "likes": 0}
        content["siblings"] = [{"rfilename": path} for path in commit.files]
        return self.send_json(content)

    def refs(self, kind, name):
        repo = self.find_repo(kind, name)
        if repo is not None:
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repo.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}
            self.send_json({"branches": [main], "tags": tags, "converts": [], "pullRequests": []})

    def history(self, kind, name, revision):
        repo = self.find_repo(kind, name)
        if repo is not None:
            entries = [
                {"id": c.oid, "title": c.title, "message": "", "date": DATE, "authors": []} for c in repo.commits
            ]
            self.send_json(entries[::-1])

    def tree(self, kind, name, revision, path=None):
        repo = self.find_repo(kind, name)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        prefix = f"{path}/" if path else ""
        inside = {name: stored for name, stored in commit.files.items() if name.startswith(prefix)}
        if path and not inside:
            return self.refuse(404, "EntryNotFound", f"{path} does not exist on {revision}")
        if self.query.get("recursive", ["false"])[0].lower() == "true":
            folders = {parent for name in inside for parent in parents(name) if parent.startswith(prefix)}
        else:
            below = {name[len(prefix) :] for name in inside}
            folders = {prefix + name.split("/")[0] for name in below if "/" in name}
            inside = {name: stored for name, stored in inside.items() if "/" not in name[len(prefix) :]}
        entries = [
            {"type": "directory", "path": folder, "oid": git_oid(folder.encode()), "size": 0} for folder in folders
        ]
        entries += [stored.describe(name) for name, stored in inside.items()]
        return self.send_json(sorted(entries, key=lambda entry: entry["path"]))

    def paths_info(self, kind, name, revision):
        repo = self.find_repo(kind, name)
        if repo is None:
            return None
        if "json" in self.headers.get("Content-Type", ""):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode())["paths"]
        commit = repo.find(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        folders = {parent for name in commit.files for parent in parents(name)}
        entries = [commit.files[path].describe(path) for path in wanted if path in commit.files]
        entries += [
            {"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0}
            for path in wanted
            if path in folders
        ]
        return self.send_json(entries)

    def tag(self, kind, name, revision):
        repo = self.find_repo(kind, name) if self.may_write() else None
        if repo is None:
            return None
        tag = json.loads(self.body)["tag"]
        if tag in repo.tags:
            return self.send_json({"error": f"Tag {tag} exists already"}, 409)
        repo.tags[tag] = repo.find(revision).oid
        return self.send_json({})

    ##########
    # Upload
    ##########
    def preupload(self, kind, name, revision):
        repo = self.find_repo(kind, name) if self.may_write() else None
        if repo is None:
            return None
        answers = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10 << 20 else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            there = repo.head.files.get(file["path"])
            if there:
                answer["oid"] = there.sha256 or there.oid
            answers.append(answer)
        return self.send_json({"files": answers})

    def lfs_batch(self, name, kind=None):
        if not self.may_write():
            return None
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/lfs/{oid}"}
                if size > self.hub.chunk_size:
                    count = -(-size // self.hub.chunk_size)
                    parts = {str(n): f"{self.hub.url}/lfs/{oid}/parts/{n}" for n in range(1, count + 1)}
                    upload = {
                        "href": f"{self.hub.url}/lfs/{oid}/complete",
                        "header": {"chunk_size": str(self.hub.chunk_size), **parts},
                    }
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/{oid}/verify"}}
            objects.append(entry)
        return self.send_json({"transfer": "multipart", "objects": objects})

    def lfs_put(self, oid, part=None):
        if part:
            self.hub.parts[oid, int(part)] = self.body
        elif hashlib.sha256(self.body).hexdigest() != oid:
            return self.send_json({"error": "checksum mismatch"}, 400)
        else:
            self.hub.objects[oid] = self.body
        return self.send_bytes(b"", 200, {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def lfs_complete(self, oid):
        numbers = sorted(part["partNumber"] for part in json.loads(self.body)["parts"])
        content = b"".join(self.hub.parts[oid, number] for number in numbers)
        if hashlib.sha256(content).hexdigest() != oid:
            return self.send_json({"error": "checksum mismatch"}, 400)
        self.hub.objects[oid] = content
        return self.send_json({})

    def lfs_verify(self, oid):
        there = len(self.hub.objects.get(oid, b"")) == json.loads(self.body)["size"]
        self.send_json({}, 200 if there else 404)

    def commit(self, kind, name, revision):
        repo = self.find_repo(kind, name) if self.may_write() else None
        if repo is None:
            return None
        files, header = dict(repo.head.files), {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            path = value.get("path", "")
            if operation["key"] == "header":
                header = value
                if value.get("parentCommit", repo.head.oid) != repo.head.oid:
                    return self.send_json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            elif operation["key"] == "file":
                files[path] = Stored(base64.b64decode(value["content"]), None)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return self.send_json({"error": f"LFS pointer of {path} points to a file that is not there"}, 400)
                files[path] = Stored(self.hub.objects[value["oid"]], value["oid"])
            elif operation["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    return self.refuse(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                return self.send_json({"error": f"unknown operation {operation['key']}"}, 400)
        commit = repo.commit(header["summary"], files)
        prefix = "datasets/" if kind == "datasets" else ""
        url = f"{self.hub.url}/{prefix}{name}/commit/{commit.oid}"
        return self.send_json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    ##########
    # Download
    ##########
    def resolve(self, name, revision, path, kind=None):
        repo = self.find_repo(kind or "models", name)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        headers = {"X-Repo-Commit": commit.oid}
        stored = commit.files.get(path)
        if stored is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.send_json({"error": "Entry not found"}, 404, headers)
        headers |= {"ETag": f'"{stored.sha256 or stored.oid}"', "Accept-Ranges": "bytes"}
        if stored.sha256:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(stored.content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.send_bytes(stored.content, 200, headers)
        start, end = int(wanted[1]), int(wanted[2] or len(stored.content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(stored.content)}"
        return self.send_bytes(stored.content[start : end + 1], 206, headers)


REPO = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
FILES = r"/((?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/oauth/device", "login"),
    ("POST", r"/oauth/token", "give_token"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", REPO, "info"),
    ("GET", REPO + r"/revision/(?P<revision>[^/]+)", "info"),
    ("GET", REPO + r"/refs", "refs"),
    ("GET", REPO + r"/commits/(?P<revision>[^/]+)", "history"),
    ("GET", REPO + r"/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    ("POST", REPO + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", REPO + r"/tag/(?P<revision>[^/]+)", "tag"),
    ("POST", REPO + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", REPO + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", FILES + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_put"),
    ("PUT", r"/lfs/(?P<oid>\w+)/parts/(?P<part>\d+)", "lfs_put"),
    ("POST", r"/lfs/(?P<oid>\w+)/complete", "lfs_complete"),
    ("POST", r"/lfs/(?P<oid>\w+)/verify", "lfs_verify"),
    ("HEAD|GET", FILES + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)
