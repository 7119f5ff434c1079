"""What `pipeline.dataset` is made of: order, steps, pinned rows, bytes, batches, state."""
