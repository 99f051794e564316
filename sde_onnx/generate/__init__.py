"""Seeds to images: batches, and folders that are resumed."""
