"""Data and training of DENet."""
