"""What a monitor serves over HTTP: /metrics, health and the status page."""
