"""Filters that judge a document alone, by rules."""
