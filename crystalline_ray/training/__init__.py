"""The training run: schedule, checkpoints, metrics, what the user sees, and the loop that ties them together."""
