"""Kernels in Triton; each module is imported when its op first runs."""
