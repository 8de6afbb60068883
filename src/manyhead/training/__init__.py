"""The one training loop: fit(), checkpoints, resume, logs and the chaos test."""
