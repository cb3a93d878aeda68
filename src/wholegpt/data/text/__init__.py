"""Text for language modeling: documents to shards of token ids, and shards to batches."""
