"""One file for each library: how its users train, predict and read folders with it."""
