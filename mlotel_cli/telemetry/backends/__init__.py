"""The backends other than stamps: a span becomes nothing, an NVTX range, or an annotation of torch.profiler."""
