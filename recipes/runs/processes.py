# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: all read the same before any trains, and none waits for another for ever.

A node with an older copy of the data, other code or another library would train along, each step a mixture of two runs, or
leave the others waiting in a collective operation. So each process describes what it has loaded, all compare, and a
difference ends all of them by name.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object


LONGEST = 60  # characters of a value in a message
MOST = 5  # differences in a message


################
# Doing it together
################


def agree(training_arguments, function: Callable, *arguments) -> Any:
    """
    The result of `function` in the first process, in all of them; what it raises, all raise.

    Raises:
        ValueError: of the same message, if the first process raised an OSError or a ValueError.
    """
    outcome = [None, None]
    if training_arguments.process_index == 0:
        try:
            outcome[0] = function(*arguments)
        except (OSError, ValueError) as error:
            outcome[1] = str(error)
    if training_arguments.world_size > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


def together(training_arguments, function: Callable, *arguments) -> Any:
    """
    The result of `function`, which every process calls; if it fails in one of them, all raise.

    Raises:
        ValueError: with the ranks that raised an OSError or a ValueError, and what they said.
    """
    result, error = None, None
    try:
        result = function(*arguments)
    except (OSError, ValueError) as caught:
        error = caught
    if training_arguments.world_size == 1:
        if error is not None:
            raise error
        return result
    errors = gather_object([None if error is None else str(error)])
    if None not in errors and len(set(errors)) == 1:
        raise ValueError(errors[0])
    if any(text is not None for text in errors):
        ranks = [rank for rank, text in enumerate(errors) if text is not None]
        raise ValueError("; ".join(f"rank {rank}: {errors[rank]}" for rank in ranks[:MOST]))
    return result


def check_same(fields: dict[str, str | None]):
    """
    Compares what the processes have loaded, by `fields`; of one that is None a process knows nothing.

    Raises:
        ValueError: in all processes, naming the fields that differ and the ranks that have each value.
    """
    everyone = gather_object([fields])
    different = []
    for name in dict.fromkeys(name for one in everyone for name in one):
        ranks_of = {}
        for rank, one in enumerate(everyone):
            ranks_of.setdefault(one.get(name, "absent"), []).append(rank)
        ranks_of.pop(None, None)
        if len(ranks_of) > 1:
            values = ", ".join(f"{shorten(value)} on {name_ranks(ranks)}" for value, ranks in ranks_of.items())
            different.append(f"{name}: {values}")
    if different:
        more = f"; and {len(different) - MOST} more" if len(different) > MOST else ""
        raise ValueError(
            f"the processes of this run do not load the same, so none trains: {'; '.join(different[:MOST])}{more}. Give "
            "all of them the same files, settings and code."
        )


def shorten(value: str) -> str:
    if len(value) <= LONGEST:
        return value
    return f"{value[: LONGEST - 20]}... (SHA-256 {hashlib.sha256(value.encode()).hexdigest()[:8]})"


def name_ranks(ranks: list[int]) -> str:
    more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:3]))}{more}"


################
# Waiting
################


def limit_waiting(training_arguments):
    """
    Lets no process wait in a collective operation for longer than `ddp_timeout` seconds.

    transformers hands it to processes on GPUs alone; groups that DeepSpeed makes have torch's own limits.
    """
    if dist.is_initialized():
        for group in list(dist.distributed_c10d._world.pg_map):
            dist.distributed_c10d._set_pg_timeout(training_arguments.ddp_timeout_delta, group)


def is_lost(error: BaseException) -> bool:
    """Whether `error` says that another process has not answered, or has gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def explain_lost(error: RuntimeError, training_arguments, step: int | None = None) -> str:
    """
    The line that a process ends with whose collective operation failed.

    Raises:
        RuntimeError: `error` itself, if it is another one.
    """
    if not is_lost(error):
        raise error
    text = " ".join(str(error).split())
    when = "before training" if step is None else f"after step {step}"
    what = "another process of this run has ended or cannot be reached; its own message says why"
    if "timed out" in text.lower() or "timeout" in text.lower():
        what = (
            f"another process did not answer within {training_arguments.ddp_timeout} s (ddp_timeout): it was stopped, "
            "or has more to do alone than that"
        )
    return f"{when}, {what}: {text}"


__all__ = ["agree", "check_same", "explain_lost", "is_lost", "limit_waiting", "together"]
