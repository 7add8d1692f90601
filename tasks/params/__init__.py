"""`params.yaml`, the one file a user edits."""

from tasks.params.reading import FILE, load, parse
from tasks.params.sections import Params

__all__ = ["FILE", "Params", "load", "parse"]
