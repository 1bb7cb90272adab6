"""Ops timed one by one by pytest-benchmark."""
