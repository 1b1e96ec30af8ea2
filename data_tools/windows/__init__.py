"""Windows at target quantiles of a score, as phases: what each slice of a dataset is, to be trained on."""
