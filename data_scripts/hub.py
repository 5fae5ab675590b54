# SPDX-License-Identifier: Apache-2.0
"""Files to a repo of the Hub: checked before, in one commit, the same however often it is repeated, with a tag.

One commit, because a reader must never find half a model; `create_commit` sends the large files first, and what the Hub has of
them is not sent again, so a repeated upload goes on where the first was cut.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from .credentials import find_credential
from .files import describe_os_error, is_disk_full
from .machine_paths import find_folder


# What the Hub itself puts into a new repo.
HUB_FILES = (".gitattributes",)
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Texts that say what was done on this machine. Vocabularies and templates are the language model's, and hold any word.
TEXTS = (".cff", ".csv", ".json", ".md", ".py", ".txt", ".yaml")
VOCABULARIES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

Files = dict[str, Path | bytes]


class UploadError(RuntimeError):
    """The repo cannot be uploaded to, or an upload failed; the message says what to do."""


@dataclass(frozen=True)
class Remote:
    """A repo as it is found; `head` is None if there is none yet."""

    head: str | None = None
    unchanged: bool = False
    outdated: tuple[str, ...] = ()
    tagged: bool = False


def check_names(repo_id: str, tag: str | None):
    """Raises UploadError unless `repo_id` is a valid `namespace/name` and `tag` a valid tag."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UploadError(f"{repo_id!r} cannot name a repo: {error}") from error
    if "/" not in repo_id:
        raise UploadError(f"{repo_id!r} cannot name a repo: give the user or organization too, as in org/{repo_id}.")
    if tag is not None and not TAG.fullmatch(tag):
        raise UploadError(f"{tag!r} cannot name a tag: letters, digits, '.', '_' and '-' only.")


def check_token(api: HfApi):
    """Raises UploadError unless the Hub knows the token and it may write."""
    try:
        account = api.whoami()
    except LocalTokenNotFoundError as error:
        raise UploadError("There is no token: run `hf auth login`, or set HF_TOKEN to one that may write.") from error
    except (HTTPError, OSError, ValueError) as error:
        raise UploadError(f"{api.endpoint} does not accept the token: {describe_error(error)}") from error
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UploadError(f"The token of {account['name']} may only read: make one that may write.")


def check_repo(
    api: HfApi, repo_id: str, repo_type: str, files: Files, *, private: bool, tag: str | None, marker: str
) -> Remote:
    """
    What uploading `files` would do to the repo.

    Args:
        files: path in the repo to what it shall hold.
        private: whether the repo has to be private.
        tag: name of this version, or None for none.
        marker: the file by which a repo that was uploaded by the same command is known.

    Raises:
        UploadError: the repo holds something else, is public and has to be private, `tag` names other content, or the
            Hub does not answer.
    """
    try:
        info = api.repo_info(repo_id, repo_type=repo_type)
        remote = _list_files(api, repo_id, repo_type, info.sha)
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
        tagged = _list_files(api, repo_id, repo_type, tags[tag]) if tag in tags else None
    except RepositoryNotFoundError:
        return Remote()
    except (HTTPError, OSError, ValueError) as error:
        raise UploadError(f"{repo_id} cannot be read: {describe_error(error)}") from error
    if private and not info.private:
        raise UploadError(f"{repo_id} is public and has to be private: make it private first, or choose another name.")
    present = sorted(remote.keys() - HUB_FILES)
    if present and marker not in remote:
        some = ", ".join(present[:3]) + (", ..." if len(present) > 3 else "")
        raise UploadError(f"{repo_id} holds something else ({some}; no {marker}): choose another name.")
    if tagged is not None and not _is_same(tagged, files):
        raise UploadError(f"The tag {tag} of {repo_id} names another version: give this one another --tag.")
    outdated = tuple(path for path in present if path not in files)
    return Remote(info.sha, _is_same(remote, files), outdated, tagged is not None)


def own_file(folder: Path, name: str) -> Path:
    """
    The file `name` of `folder`, to be uploaded.

    Raises:
        UploadError: it, or a folder on the way, is a link to somewhere else, or `name` leads out of `folder`.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UploadError(
            f"{path} is not in {folder}: it leads to {path.resolve()}, which may hold what is not meant to be published. Put "
            "the file itself there (of a folder of the Hub's cache: hf download --local-dir makes one with the files)."
        )
    return path


def check_contents(files: Files):
    """
    Raises UploadError, naming file and line, for what has the form of a token, a password or a private key (see
    `credentials`), and for a text that names this user's home, or the folder that we are in.
    """
    for path, content in sorted(files.items()):
        try:
            place = find_credential(content)
        except (OSError, ValueError) as error:
            raise UploadError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if place is not None:
            raise UploadError(
                f"{path}, {place}: holds what looks like a token, a password or a private key. Nothing is uploaded: take it "
                "out; if others could read it, revoke it."
            )
        if path.endswith(TEXTS) and path not in VOCABULARIES:
            text = content if isinstance(content, bytes) else content.read_bytes()
            if (place := find_folder(text, (Path.home(), Path.cwd()))) is not None:
                raise UploadError(
                    f"{path}, {place}: names a folder of this machine. Nothing is uploaded: take it out."
                )


def upload(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: Files,
    remote: Remote,
    *,
    private: bool,
    tag: str | None,
    message: str,
) -> tuple[str, bool]:
    """
    Makes the repo hold `files` and nothing else, in one commit, and tags it.

    Args:
        remote: of [`check_repo`] with the same arguments.

    Returns:
        The repo's address, and whether there was anything to commit.

    Raises:
        UploadError: a file holds what is not to be published, or the Hub failed; the same call goes on from there.
    """
    if not remote.unchanged:
        check_contents(files)
    try:
        url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        head = remote.head
        if not remote.unchanged:
            operations = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
            operations += [CommitOperationDelete(path) for path in remote.outdated]
            # With the commit it was checked against: what somebody else uploads meanwhile is not overwritten.
            commit = api.create_commit(
                repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=head
            )
            head = commit.oid
        if tag is not None and not remote.tagged:
            api.create_tag(repo_id, tag=tag, revision=head, repo_type=repo_type)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UploadError(
            f"Uploading to {repo_id} failed: {describe_error(error)} Nothing but whole commits is visible there; the "
            "same command goes on from here."
        ) from error
    return str(url), not remote.unchanged


def describe_error(error: BaseException) -> str:
    """One line, with the request and the server's own words where there are some."""
    cause = error
    while not isinstance(cause, HfHubHTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if is_disk_full(cause):  # of the cache that large files pass through
        return f"{describe_os_error(cause, Path(HF_HOME))}."
    if not isinstance(cause, HfHubHTTPError):
        return " ".join(str(cause).split()) or type(cause).__name__
    response = cause.response
    words = cause.server_message or response.headers.get("X-Error-Message") or response.reason_phrase
    request = f"{response.request.method} {response.request.url.copy_with(query=None)}"
    return f"{request} was answered with {response.status_code}: {' '.join(words.split())}."


def _list_files(api: HfApi, repo_id: str, repo_type: str, revision: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _is_same(remote: dict[str, RepoFile], files: Files) -> bool:
    """Whether the repo holds these files, with these bytes, and no others."""
    if remote.keys() - HUB_FILES != files.keys():
        return False
    sizes = {path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in files.items()}
    # All sizes before any content.
    return all(remote[path].size == size for path, size in sizes.items()) and all(
        _has_content(remote[path], file, sizes[path]) for path, file in files.items()
    )


def _has_content(remote: RepoFile, file: Path | bytes, size: int) -> bool:
    # The Hub names large files by SHA-256, others as git does.
    digest = hashlib.sha256() if remote.lfs else hashlib.sha1(b"blob %d\0" % size)
    if isinstance(file, bytes):
        digest.update(file)
    else:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() == (remote.lfs.sha256 if remote.lfs else remote.blob_id)


__all__ = [
    "Files",
    "Remote",
    "UploadError",
    "check_contents",
    "check_names",
    "check_repo",
    "check_token",
    "describe_error",
    "own_file",
    "upload",
]
