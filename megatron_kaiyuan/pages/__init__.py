"""What every page of this project has: its frame, its style of figures, and the tables of a token stream."""
