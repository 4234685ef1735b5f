"""Documents to batches: numpy only, nothing here imports jax."""
