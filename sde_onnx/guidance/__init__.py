"""Scores made of scores: each takes a score function and returns one, and so runs under every solver."""
