"""Text for demonstrations, from what a Python installation holds."""
