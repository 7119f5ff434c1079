"""Trains tokenizers: configuration, run folder, loop and what a person sees of it."""
