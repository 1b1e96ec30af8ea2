"""What computes the network between its matrix products."""
