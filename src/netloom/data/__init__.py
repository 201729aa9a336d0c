"""What pictures are there, decoded once, split honestly, augmented per sample."""
