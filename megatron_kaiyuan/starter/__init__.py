"""A folder to begin in, with recipes, launch scripts and pages: a wheel's user has no checkout to take them from."""
