"""The report of a run: one HTML file that opens anywhere and asks nothing of the network."""
