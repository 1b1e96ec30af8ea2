"""Runs about runs: what data is worth, measured by training on it. It only calls what stands below it."""
