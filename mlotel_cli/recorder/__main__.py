"""`python -m mlotel_cli.recorder READ_FD WRITE_FD RUN_DIR`: started by the workload, never by hand."""

import signal

# Before the slow imports below: a service manager signals every process of a service, but the workload says when a run
# is over.
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)

from mlotel_cli.recorder.process import main  # noqa: E402

main()
