# SPDX-License-Identifier: Apache-2.0
"""Caches off network home directories. Standard library only: it runs before the libraries read their variables.

Compilers and `datasets` lock, map and rewrite many small files: on a network home directory that is slow, and hundreds of
processes that do it at once bring a file server down.
"""

import os
import tempfile
from pathlib import Path


NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "fuse.ceph-fuse", "cifs"}
NETWORK_FILE_SYSTEMS |= {"smb3", "afs", "panfs", "wekafs", "fuse.glusterfs", "fuse.sshfs", "orangefs", "pvfs2"}
# Where batch systems give a job fast storage of its own; the first that is set, exists and can be written to.
SCRATCH_VARIABLES = ("SLURM_TMPDIR", "TMPDIR", "PBS_JOBFS", "LOCAL_SCRATCH", "SCRATCH_LOCAL", "SCRATCH")
# Cache to (folder that the library uses by default, folder under scratch).
CACHES = {
    "HF_DATASETS_CACHE": ("{hf_home}/datasets", "huggingface/datasets"),
    "HF_MODULES_CACHE": ("{hf_home}/modules", "huggingface/modules"),
    "TRITON_CACHE_DIR": ("{home}/.triton/cache", "triton"),
    "TORCH_HOME": ("{cache}/torch", "torch"),
    "TORCHINDUCTOR_CACHE_DIR": ("{tmp}/torchinductor", "torchinductor"),
    "TORCH_EXTENSIONS_DIR": ("{cache}/torch_extensions", "torch_extensions"),
    "MPLCONFIGDIR": ("{home}/.config/matplotlib", "matplotlib"),
}


def read_mounts(path: Path = Path("/proc/mounts")) -> list[tuple[str, str]]:
    """(mount point, file system type) of every mount, as Linux lists them; empty elsewhere."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    # A space in a mount point is written \040.
    return [(fields[1].replace("\\040", " "), fields[2]) for fields in map(str.split, lines) if len(fields) > 2]


def file_system(path: Path, mounts: list[tuple[str, str]]) -> str | None:
    """Type of the file system that `path` is on or would be made on; the last mount over a folder counts."""
    path = path.expanduser().resolve()
    best, best_length = None, -1
    for mount_point, kind in mounts:
        if path.is_relative_to(mount_point) and len(mount_point) >= best_length:
            best, best_length = kind, len(mount_point)
    return best


def is_network(path: Path, mounts: list[tuple[str, str]]) -> bool:
    return file_system(path, mounts) in NETWORK_FILE_SYSTEMS


def move_caches(environment: dict[str, str], mounts: list[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """
    What to set so that no cache is on a network home directory. What is set already stays as it is.

    Models and datasets of the Hub (`HF_HOME`) stay where they are if something has been downloaded there: every node
    has to find it. An empty or missing `HF_HOME` moves to `$SCRATCH` where that exists, since nodes share it.

    Returns:
        The variables to set, and lines that say what was done or could not be.
    """
    home = Path(environment.get("HOME", "~")).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME", home / ".cache"))
    hf_home = Path(environment.get("HF_HOME", cache / "huggingface"))
    folders = {"home": home, "cache": cache, "hf_home": hf_home, "tmp": tempfile.gettempdir()}
    defaults = {name: Path(default.format(**folders)) for name, (default, _) in CACHES.items()}
    slow = [name for name in CACHES if name not in environment and is_network(defaults[name], mounts)]
    hf_home_is_slow = "HF_HOME" not in environment and is_network(hf_home, mounts)
    if not slow and not hf_home_is_slow:
        return {}, []

    scratch = local_scratch(environment, mounts)
    kind = file_system(home, mounts)
    if scratch is None:
        names = ", ".join([*slow, *["HF_HOME"] * hf_home_is_slow])
        return {}, [
            f"{names}: on a network file system ({kind}), and none of {', '.join(SCRATCH_VARIABLES)} is better."
        ]
    # One user's caches apart from another's where the folder is shared.
    root = scratch / f"vggt-qwen3-{environment.get('USER') or os.getuid()}"
    moved = {name: str(root / CACHES[name][1]) for name in slow}
    lines = [f"{name}={folder} (its default is on {kind})" for name, folder in moved.items()]
    if hf_home_is_slow:
        shared = environment.get("SCRATCH")
        if (hf_home / "hub").is_dir() and any((hf_home / "hub").iterdir()):
            lines.append(f"HF_HOME stays {hf_home}: what was downloaded there is needed on every node")
        elif shared and os.access(shared, os.W_OK):
            moved["HF_HOME"] = str(Path(shared) / root.name / "huggingface")
            lines.append(f"HF_HOME={moved['HF_HOME']} (its default is on {kind})")
        else:
            lines.append(f"HF_HOME stays {hf_home}: $SCRATCH names no better folder that all nodes see")
    return moved, lines


def local_scratch(environment: dict[str, str], mounts: list[tuple[str, str]]) -> Path | None:
    """A folder for caches: node-local if there is one, else scratch storage; not a network home directory."""
    candidates = [Path(environment[name]) for name in SCRATCH_VARIABLES if environment.get(name)]
    candidates.append(Path(tempfile.gettempdir()))
    usable = [path for path in candidates if path.is_dir() and os.access(path, os.W_OK)]
    local = [path for path in usable if not is_network(path, mounts)]
    home = Path(environment.get("HOME", "~")).expanduser()
    scratch = [path for path in usable if not path.resolve().is_relative_to(home.resolve())]
    return next(iter(local + scratch), None)


def cache_folders(environment: dict[str, str]) -> dict[str, Path]:
    """The folders that caches will be written to, by the variable that moves them."""
    home = Path(environment.get("HOME", "~")).expanduser()
    cache = Path(environment.get("XDG_CACHE_HOME", home / ".cache"))
    hf_home = Path(environment.get("HF_HOME", cache / "huggingface"))
    folders = {"home": home, "cache": cache, "hf_home": hf_home, "tmp": tempfile.gettempdir()}
    defaults = {name: default.format(**folders) for name, (default, _) in CACHES.items()}
    return {name: Path(environment.get(name, default)) for name, default in ({"HF_HOME": hf_home} | defaults).items()}


__all__ = ["cache_folders", "file_system", "is_network", "move_caches", "read_mounts"]
