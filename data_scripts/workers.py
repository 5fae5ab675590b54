# SPDX-License-Identifier: Apache-2.0
"""What each worker process does first."""

import multiprocessing
import os
import signal
import threading


def start_worker():
    """
    Leaves an interrupt to the parent process, and ends with it: one that is killed, as for want of memory, cannot tell its
    workers, which would wait for tasks for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


__all__ = ["start_worker"]
