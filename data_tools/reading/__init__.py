"""What comes in: the files, how the work over them is cut and shared, and the rows in them."""
