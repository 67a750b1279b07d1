"""Effectiveness, significance, and the report."""
