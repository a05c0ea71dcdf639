"""What the SQL functions call: one module a topic, loaded when a session first needs it."""

import importlib
from types import ModuleType

from ..importer import collecting_nothing


def __getattr__(name: str) -> ModuleType:
    """Import the topic `name` on first use."""
    if name.startswith("_"):
        raise AttributeError(name)
    with collecting_nothing():
        return importlib.import_module(f"{__name__}.{name}")
