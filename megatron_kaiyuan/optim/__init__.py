"""Optimizer, learning-rate schedule across phases, loss scaling."""
