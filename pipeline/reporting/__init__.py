"""Pictures, charts and facts of the run report; ``python -m pipeline.report`` puts them together."""
