"""Paired comparison of activations by validation perplexity: what compare.py does, one noun a file."""
