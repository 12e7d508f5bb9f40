"""Compression: a smaller network that keeps a budget of accuracy."""
