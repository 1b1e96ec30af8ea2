"""Text to corpora: a pool of workers writes shards, which are joined."""
