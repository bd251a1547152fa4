"""Python's command line in a process that is forked from one which has imported the programs: no start of seconds for each.

`python tests/forked.py SOCKET` serves the checkout in which it stands, until its standard input ends. `ask` is its client.
"""

import importlib
import json
import os
import runpy
import selectors
import socket
import sys
import traceback

IMPORTED = (
    "torch._inductor",
    "matplotlib.figure",
    "scipy.stats",
    "train",
    "sample",
    "compare",
    "evaluate",
    "export",
    "data.prepare",
)


def ask(server: str, words: list[str]) -> int:
    """The exit code of `python WORDS`, in this process's folder and environment and with its streams."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server)
        order = json.dumps({"words": words, "folder": os.getcwd(), "environment": dict(os.environ)})
        socket.send_fds(connection, [order.encode() + b"\n"], [0, 1, 2])
        answer = connection.recv(16)
    return int(answer or b"1")  # it was killed


def serve(path: str) -> None:
    """Fork a process for each order."""
    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["comparison.plots"].DOTS = 50  # pictures of a sixteenth of the pixels
    os.fsync = lambda fd: None  # as in tests/runs.py
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(f"{path}.new")
        listener.listen()
        os.rename(f"{path}.new", path)  # who finds it can connect
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while all(key.fileobj is listener for key, _ in selector.select()):
            connection, _ = listener.accept()
            if os.fork() == 0:
                os._exit(_run(connection))
            connection.close()


def _run(connection: socket.socket) -> int:
    """In the child: be the program, and answer with its exit code."""
    order, streams, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not order.endswith(b"\n"):
        order += connection.recv(1 << 16)
    for number, (stream, name, mode) in enumerate(zip(streams, ("stdin", "stdout", "stderr"), "rww", strict=True)):
        os.dup2(stream, number)
        setattr(sys, name, open(number, mode, buffering=1))  # noqa: SIM115  # for as long as the process lives
    values = json.loads(order)
    os.chdir(values["folder"])
    os.environ.clear()
    os.environ.update(values["environment"])
    is_module = values["words"][0] == "-m"
    name, *sys.argv[1:] = values["words"][is_module:]
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = name
            runpy.run_path(name, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(str(code).encode())
    return code


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    serve(sys.argv[1])
