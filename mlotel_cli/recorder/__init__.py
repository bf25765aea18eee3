"""The other process: assembles rows from stamps and owns every sink. Never imported by the workload's hot path."""
