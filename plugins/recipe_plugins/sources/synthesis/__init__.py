"""The source `synthesise`: text that a model writes."""
