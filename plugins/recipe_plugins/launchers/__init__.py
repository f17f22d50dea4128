"""TODO"""

from __future__ import annotations

from recipe_runner import Component

COMPONENTS: list[Component] = []
