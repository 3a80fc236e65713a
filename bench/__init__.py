"""Measurements of ttc_kernels and ttc_runtime beside their floors and their peers."""
