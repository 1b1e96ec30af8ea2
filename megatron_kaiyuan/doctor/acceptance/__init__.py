"""Twenty checks of a machine that this project was never run on, and one record of them to send back (`table.py`)."""
