"""Scores of documents: what a scorer is, the kinds that there are, and what they need."""
