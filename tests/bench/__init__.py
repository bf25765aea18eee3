"""What telemetry costs, as ratios within one run: `make bench`. Never part of the tests."""
