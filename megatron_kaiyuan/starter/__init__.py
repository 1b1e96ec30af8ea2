"""A folder to begin in: recipes, launch scripts and documentation, for who installed the package without its sources."""
