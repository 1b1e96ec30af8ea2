"""Text from a model: sampling, the cache of keys and values and streaming are transformers' own."""
