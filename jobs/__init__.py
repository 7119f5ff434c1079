"""What one launches beside the pipeline: training, evaluation, benchmarks, recipes for clusters."""
