"""What agents stand on: data, embeddings, retrieval, signals, the model client and its server."""
