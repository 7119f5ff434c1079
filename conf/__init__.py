"""Hydra configuration of all commands: YAML values only, no code."""
