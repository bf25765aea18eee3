"""`python -m mlotel_cli.recorder READ_FD WRITE_FD RUN_DIR`: started by the workload, never by hand."""

from mlotel_cli.recorder.process import main

main()
