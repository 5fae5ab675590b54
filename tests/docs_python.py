# SPDX-License-Identifier: Apache-2.0
"""
A `python` that starts at once: its processes are forked from one that has imported the libraries, which takes most of the
time of a short command.

    python tests/docs_python.py serve SOCKET EXECUTABLE     forks; processes find EXECUTABLE as their sys.executable
    python -IS tests/docs_python.py run SOCKET ...          `python ...`: what EXECUTABLE does

So what a command starts itself (launchers, training processes) is forked as well. Modules and scripts are; what asks for
something else (`-I`, `-c`) is a process of its own.
"""

import json
import os
import signal
import socket
import sys


def run(path: str, arguments: list[str]):
    """Hands arguments, environment, folder and streams to the server, and ends as the process that it forks."""
    if arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    module_or_script = arguments and (arguments[0] == "-m" or not arguments[0].startswith("-"))
    if not module_or_script:
        os.execv(sys.executable, [sys.executable, *arguments])
    job = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"0"], [0, 1, 2])
        connection.sendall(json.dumps(job).encode())
        connection.shutdown(socket.SHUT_WR)
        code = connection.makefile().read()
    sys.exit(int(code) if code else "docs_python.py: the server ended")


def serve(path: str, executable: str):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)  # who calls now waits until the libraries are imported
    import accelerate.commands.accelerate_cli  # noqa: F401
    import evaluate  # noqa: F401

    import data_scripts.builders  # noqa: F401
    import recipes.common.feature_store_writer  # noqa: F401
    import recipes.evaluation.action_page  # noqa: F401
    import recipes.launching.preflight  # noqa: F401
    import recipes.publishing.upload  # noqa: F401
    import recipes.training.sft  # noqa: F401

    sys.executable = executable
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for `answer`
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
            os._exit(0)
        connection.close()


def answer(connection: socket.socket):
    """Forks what a connection asks for, and sends its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    job = json.loads(connection.makefile().read())
    process = os.fork()
    if process == 0:
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        execute(job["arguments"], job["folder"], job["environment"])
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    connection.sendall(str(code if code >= 0 else 128 - code).encode())


def execute(arguments: list[str], folder: str, environment: dict[str, str]):
    """What the interpreter does with these arguments; does not return."""
    import atexit
    import runpy
    import threading
    import traceback

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    code = 0
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], folder
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As at an interpreter's end, without taking down what belongs to the server.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        run(sys.argv[2], sys.argv[3:])
