"""`python -m mlotel_cli.recorder READ_FD WRITE_FD RUN_DIR`: started by the workload, never by hand."""

import signal

# The workload says when a run is over; a service manager signals every process of a service. Blocked and not ignored,
# and before any import starts a thread: polars puts a handler of its own for SIGINT, which ends a write that is going on.
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

from mlotel_cli.recorder.process import main  # noqa: E402

main()
