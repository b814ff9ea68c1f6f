"""A model of QEMU, the real engine on top of it, and searches for a state in which a promise does not hold."""

from tests.model import commands as _commands  # fills the model's table of commands

__all__ = ["_commands"]
