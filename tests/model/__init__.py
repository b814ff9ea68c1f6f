"""A model of QEMU, the real engine on top of it, and searches for a state in which a promise does not hold."""

from tests.model import commands as _commands  # fills the model's table of commands
from tests.model import layers as _layers  # the same

__all__ = ["_commands", "_layers"]
