"""Search over hyperparameters: spaces, samplers, pruners, and studies that survive a crash."""
