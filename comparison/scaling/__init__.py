"""Sweeps of several sizes and lengths side by side: laws of the loss, and what they foretell."""
