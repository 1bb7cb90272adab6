"""A pre-trained model of sentence embeddings at work."""
