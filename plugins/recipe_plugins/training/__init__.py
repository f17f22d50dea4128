"""The trainer mixin, data preparation, loading and saving: the second public API."""

from __future__ import annotations

__all__: list[str] = []
