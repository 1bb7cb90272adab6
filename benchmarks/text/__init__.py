"""Recurrence against attention on the sentences of a text."""
