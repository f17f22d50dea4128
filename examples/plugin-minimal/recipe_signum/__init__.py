"""An optimizer and a filter for recipe-runner."""
