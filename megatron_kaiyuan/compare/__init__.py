"""Runs side by side: what differs in their configurations and environments, their curves, their final measures."""
