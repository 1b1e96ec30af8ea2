"""Corpora: writing, joining, checking and looking into Megatron pairs with metadata and a manifest."""
