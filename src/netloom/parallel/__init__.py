"""Many pieces of work at once: an executor interface, and local worker processes behind it."""
