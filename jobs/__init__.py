"""What one launches beside the pipeline: training, evaluation, benchmarks, recipes for clusters."""

import os

# torch's threads sleep while they wait for each other, where they would spin and keep cores from
# whoever shares them. OpenMP reads this when torch is loaded, Ray's workers here inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
