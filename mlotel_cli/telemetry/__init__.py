"""Runs in the workload: turns standard OpenTelemetry spans into stamps for the recorder. It does not know any sink."""
