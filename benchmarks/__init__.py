"""Measurements of netloom beside its peers."""
