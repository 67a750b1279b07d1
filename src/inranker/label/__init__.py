"""Soft labels: teachers and the store that keeps what they said."""
