"""The rules of each phase, one file each. Pure."""
