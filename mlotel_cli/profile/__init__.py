"""`mlotel profile`: the same spans under a profiler, with the work of the device attributed to them."""
