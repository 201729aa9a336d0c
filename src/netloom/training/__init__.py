"""Training: one loop for every network, its optimizers, schedules, penalties, checkpoints and callbacks."""
