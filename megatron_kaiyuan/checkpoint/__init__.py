"""Checkpoints that are whole or absent, and never loaded unchecked."""
