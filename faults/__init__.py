"""Faults injected for real into real training processes: `python -m faults`."""
