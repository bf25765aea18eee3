"""The ways to run a pipeline: each mode runs batches and tells one recorder how every batch ended.

    evaluate   `mlotel eval`: a labelled data set, scored
    monitor    `mlotel monitor`: live input, around the clock; its loop is `monitor_loop`
    loop       `mlotel_cli.start_run`: a program's own loop
    sdk        a program with its own OpenTelemetry SDK provider

No mode imports another. What they share: `run` (a run from its start to its end), `opening` (identity, directory, first
message), `build` (what a configuration describes) and `batch_steps` (what every loop over batches does).
"""
