"""Evaluation of a tokenizer over shards of videos: its pieces; the command is beside it."""
