"""The embedded models: weights, tokenizers, recipes and scores."""
