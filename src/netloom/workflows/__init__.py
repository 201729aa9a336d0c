"""One file per verb of the command line; the Python API calls the same functions."""
