"""`mlotel` over and over without importing torch over and over: a server that forks one command at a time.

Reads a JSON line {"arguments": [...], "log": PATH, "cwd": PATH}, answers the new process's id, and later, when it
has ended, its return code as `subprocess` would say it. What runs in the child is the `mlotel` command itself.
"""

import json
import os
import sys
from pathlib import Path


def serve() -> None:
    import torch

    import mlotel_cli.launch
    import mlotel_cli.modes.evaluate  # noqa: F401 - imported for the children
    from mlotel_cli.cli import app

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            os.setsid()
            os.chdir(job["cwd"])
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for fd in (1, 2):
                os.dup2(log, fd)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 1
            try:
                app(args=job["arguments"], prog_name="mlotel")
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def processes_naming(folder: Path) -> list[int]:
    """Ids of the living processes whose command line names `folder`, such as its recorder."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(process.name))
    return found


def processes_in_session(session: int) -> list[int]:
    """Ids of the living processes of a session, such as a recorder's and its wandb-core."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of_session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of_session) == session and state != "Z":
            found.append(int(process.name))
    return found


if __name__ == "__main__":
    serve()
