# SPDX-License-Identifier: Apache-2.0
"""TensorBoard logs as they are published: the curves, without the texts beside them (arguments, folders) and host names."""

import io
from pathlib import Path

from data_scripts.hub import Files, own_file


LOGS = "runs/**/events.out.tfevents.*"


def published_logs(folder: Path) -> Files:
    """
    The numbers of each log below `folder/runs`, as `runs/N/events.out.tfevents.TIME.N`, in the order of their names; a log
    without numbers is left out.

    Raises:
        UploadError: if one of them is a link to somewhere else.
    """
    paths = sorted(path for path in folder.glob(LOGS) if path.is_file())
    files: Files = {}
    for number, path in enumerate((own_file(folder, str(path.relative_to(folder))) for path in paths), start=1):
        name, content = _numbers_of(path)
        if content:
            files[f"runs/{number}/{name}.{number}"] = content
    return files


def _numbers_of(path: Path) -> tuple[str, bytes]:
    """Name and content of a log of nothing but tags, steps and numbers; one that was cut off ends early, b"" without any."""
    # Here: a run without logs is published without TensorBoard.
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    events = []
    for record in RawEventFileLoader(str(path)).Load():
        event = Event.FromString(record)
        values = [value for value in event.summary.value if value.WhichOneof("value") == "simple_value"]
        if values:
            plain = [Summary.Value(tag=value.tag, simple_value=value.simple_value) for value in values]
            events.append(Event(wall_time=event.wall_time, step=event.step, summary=Summary(value=plain)))
    if not events:
        return "", b""
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in [Event(wall_time=events[0].wall_time, file_version="brain.Event:2"), *events]:
        writer.write(event.SerializeToString())
    return f"events.out.tfevents.{int(events[0].wall_time)}", stream.getvalue()


__all__ = ["published_logs"]
