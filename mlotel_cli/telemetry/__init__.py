"""In the workload: standard OpenTelemetry spans become stamps, and stamps go to the recorder. Knows no sink."""
