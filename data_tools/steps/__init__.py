"""Steps over documents: the contract, the shards they run on, and the folder of documents that comes out."""
