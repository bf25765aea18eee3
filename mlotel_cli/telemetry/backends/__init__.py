"""What a span becomes: nothing, an NVTX range, or an annotation of torch.profiler."""
