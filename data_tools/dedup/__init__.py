"""Deduplication: exact duplicates by a digest, near-duplicates by MinHash signatures (csrc/dedup/)."""
