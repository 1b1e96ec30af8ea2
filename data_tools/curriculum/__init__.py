"""The order recipe, and the order of each phase built from it (Algorithm 1 in csrc/)."""
