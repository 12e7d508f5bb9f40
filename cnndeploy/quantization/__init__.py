"""Quantization: files in int8 or float16 that keep a budget of accuracy."""
