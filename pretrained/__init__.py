"""Folders as the Hugging Face hub has them: GPT-2's weights and config, and tokenizers."""
