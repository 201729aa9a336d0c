"""Kernels of netloom's own for operations that torch's leave slow; see `winograd.py`."""
