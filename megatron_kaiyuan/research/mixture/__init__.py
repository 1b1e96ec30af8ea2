"""From small runs on drawn mixtures to the mixture of a large one: the law, its uncertainty, and the best shares."""
