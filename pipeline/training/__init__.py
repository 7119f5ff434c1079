"""Clips for training tokenizers: streamed from tars, at drawn rates and places, in exact order."""
