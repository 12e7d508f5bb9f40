"""Benchmarks: how fast artifacts run, side by side, each in a process of its own."""
