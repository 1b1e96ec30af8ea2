"""What computes the network between its matrix products, one seam for several libraries (`choose`)."""
