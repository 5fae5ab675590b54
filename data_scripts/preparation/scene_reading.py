# SPDX-License-Identifier: Apache-2.0
"""Reads the scenes of a dataset, in several processes, into a folder from which an interrupted preparation goes on.

The folder holds one file per scene, named after everything the scene was read from: what is found there is neither stale
nor half written. At no time are more than a few scenes in memory. A scene that cannot be read, whatever its files hold, is left
out and named (`builders.left_out`); what goes wrong with the folder is an error.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..files import UnreadableFileError, write_atomically
from ..paths import UnsafePathError
from ..plain import plain
from ..schema import SCHEMA_VERSION
from ..workers import start_worker
from .annotations import InputError, SceneInput
from .base import DamagedSceneError, Options, PreparationBuilder, PreparedScene, Remark, Sources
from .left_out import reason_of


READ, FOUND, REPAIRED = "read", "found", "repaired"  # what became of a scene, see `Reading`
TASKS_PER_WORKER = 4  # that wait or run; their questions are what is in memory


@dataclass
class Reading:
    """What reading the scenes gave.

    Attributes:
        left_out: the scenes that could not be used: `scene_id`, `file`, `reason`, in the order of the annotations.
        remarks: kind to how many, in how many scenes, and the first of them.
        found: how many scenes had been read by an earlier run.
        repaired: how many had been, too, but their files were damaged, so that they were read again.
    """

    left_out: list[dict[str, str]] = field(default_factory=list)
    remarks: dict[str, dict] = field(default_factory=dict)
    found: int = 0
    repaired: int = 0

    def lines(self) -> list[str]:
        """The remarks, one line each."""
        return [
            f"{kind}: {entry['count']} in {entry['scenes']} scenes, the first in {entry['first']}"
            for kind, entry in sorted(self.remarks.items())
        ]


def scene_digest(
    builder_class: type[PreparationBuilder], sources: Sources, options: Options, scene: SceneInput
) -> str | None:
    """Names everything that the prepared scene depends on; None if the scene is absent.

    Of the raw files, which may be terabytes, it takes names, sizes and times.
    """
    try:
        files = list(builder_class.scene_files(sources, scene))
    except (OSError, UnsafePathError) as error:
        return hashlib.sha256(repr([scene.scene_id, str(error)]).encode("utf-8", "surrogatepass")).hexdigest()
    if not files:
        return None
    used = {name: value for name, value in asdict(options).items() if name in builder_class.OPTIONS}
    content = [SCHEMA_VERSION, builder_class.__name__, used, asdict(scene)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue  # reading the scene says so
        times = "" if path.is_dir() else f" {status.st_size} {status.st_mtime_ns}"
        # A file's name need not be UTF-8.
        digest.update(f"\n{relative_path(path, sources)}{times}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def relative_path(path: str | Path, sources: Sources) -> str:
    """`path` without the folders that mean nothing to others."""
    roots = (*sources.scannet_root, sources.arkitscenes_root, sources.roomplan_root, sources.image_root)
    for root in roots:
        if root is not None and Path(path).is_relative_to(root):
            return str(Path(path).relative_to(root))
    return Path(path).name


def scene_file(folder: Path, digest: str) -> Path:
    return folder / digest[:2] / digest


def read_scenes(
    builder_class: type[PreparationBuilder],
    sources: Sources,
    options: Options,
    scenes: Iterable[tuple[SceneInput, str]],
    folder: Path,
    workers: int,
    strict: bool,
) -> Reading:
    """Reads the scenes that are not in `folder` yet.

    Args:
        scenes: with their digests.
        folder: see `scene_file`.
        workers: processes; 1 reads in this one.
        strict: the first scene that cannot be used is an error.

    Raises:
        InputError: with `strict`, naming scene, file and reason.
    """
    scenes = list(scenes)
    order = {scene.scene_id: index for index, (scene, _) in enumerate(scenes)}
    reading, firsts = Reading(), {}
    read = partial(_read_one, builder_class, sources, options, folder)
    run = _in_order if workers == 1 else partial(_in_pool, workers)
    with (
        tqdm(total=len(scenes), unit="scene", desc="Reading scenes") as bar,
        closing(run(read, scenes)) as results,
    ):
        for scene_id, failure, remarks, state in results:
            bar.update()
            reading.found += state == FOUND
            reading.repaired += state == REPAIRED
            if failure is not None:
                reading.left_out.append(failure)
                if strict:
                    raise InputError(f"{describe_failure(failure)} (--strict)")
            for remark in remarks:
                entry = reading.remarks.setdefault(remark.kind, {"count": 0, "scenes": 0, "first": ""})
                entry["count"] += remark.count
                entry["scenes"] += 1
                if order[scene_id] <= firsts.get(remark.kind, len(order)):  # not the one that was ready first
                    firsts[remark.kind] = order[scene_id]
                    entry["first"] = plain(f"{scene_id} ({remark.example})")
    reading.left_out.sort(key=lambda failure: order[failure["scene_id"]])
    return reading


def describe_failure(failure: dict[str, str]) -> str:
    return f"scene {plain(failure['scene_id'])}: {plain(failure['file'])}: {failure['reason']}"


def _read_one(
    builder_class: type[PreparationBuilder],
    sources: Sources,
    options: Options,
    folder: Path,
    task: tuple[SceneInput, str],
) -> tuple[str, dict[str, str] | None, list[Remark], str]:
    scene, digest = task
    path = scene_file(folder, digest)
    state = READ
    if path.exists():
        try:
            return scene.scene_id, None, PreparedScene.read(path).remarks, FOUND
        except DamagedSceneError:
            path.unlink()
            state = REPAIRED
    try:
        prepared = builder_class.read_scene(sources, options, scene)
        prepared.check()
    except Exception as error:
        reason = reason_of(error)
        # Relative: the record becomes part of the repo, which may be published.
        file = relative_path(error.file, sources) if isinstance(error, UnreadableFileError) else scene.scene_id
        return scene.scene_id, {"scene_id": scene.scene_id, "file": file, "reason": reason}, [], state
    write_atomically(path, prepared.to_bytes())
    return scene.scene_id, None, prepared.remarks, state


def _in_order(read: Callable, scenes: list) -> Iterator:
    yield from map(read, scenes)


def _in_pool(workers: int, read: Callable, scenes: list) -> Iterator:
    # Not forked: this process has threads of other libraries.
    executor = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)
    finished = False
    try:
        running = set()
        for task in scenes:
            if len(running) >= TASKS_PER_WORKER * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            running.add(executor.submit(read, task))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
        finished = True
    finally:
        if not finished:  # the others may be at it for minutes
            for process in multiprocessing.active_children():
                process.terminate()
        executor.shutdown(cancel_futures=True)


__all__ = ["Reading", "describe_failure", "read_scenes", "relative_path", "scene_digest", "scene_file"]
