"""Runs as one compiled program, and their records."""
