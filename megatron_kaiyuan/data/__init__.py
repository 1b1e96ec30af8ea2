"""The token stream in phase order; a position is a token offset, nothing else."""
