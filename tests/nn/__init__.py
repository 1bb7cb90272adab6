"""The tests of fastattn, and the helpers that they share."""
