"""What the SQL functions call: one module a topic, loaded when a session first needs it."""

import importlib
from types import ModuleType

from ..importer import made_to_stay


def __getattr__(name: str) -> ModuleType:
    """Import the topic `name` on first use."""
    if name.startswith("_"):
        raise AttributeError(name)
    with made_to_stay():
        return importlib.import_module(f"{__name__}.{name}")
