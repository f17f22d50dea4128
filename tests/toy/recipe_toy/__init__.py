"""Stages without torch, for tests of the runner."""
