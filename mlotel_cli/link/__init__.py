"""The workload's end of the pipe: starts the recorder process, hands spans and messages over, hears its answers."""
