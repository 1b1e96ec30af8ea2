"""An environment as one file, unpacked to each node's own disk: a rank's start reads thousands of small files."""
