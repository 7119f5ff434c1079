"""Benchmarks: speed and memory, side by side with a simple version or a peer, in one run."""
