"""The atomic writer's old place; it lives in data/files.py."""

from data.files import append, reason, remove, write_atomically, write_bytes, write_json, write_text

__all__ = ["append", "reason", "remove", "write_atomically", "write_bytes", "write_json", "write_text"]
