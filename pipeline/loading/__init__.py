"""What stands behind the loader: order, steps, bytes, tokens, batches."""
