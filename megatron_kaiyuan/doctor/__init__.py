"""What is there to train on, and whether it works: a machine, its software, and what lies between the ranks."""
