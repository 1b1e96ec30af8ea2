"""What windows of data are worth: a small network trained on each, under paired seeds, and an answer with its doubt."""
