"""Bottlenecks: what turns the encoder's output into tokens."""
