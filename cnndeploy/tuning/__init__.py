"""Tuning: the fastest way to deploy a checkpoint on one machine."""
