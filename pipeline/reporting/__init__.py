"""What the run report is made of; ``python -m pipeline.report`` puts it together."""
