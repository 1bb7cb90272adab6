"""Benchmarks of fastattn: the main job `python -m benchmarks`, and pytest-benchmark suites.

README.md says how to run and read them.
"""
