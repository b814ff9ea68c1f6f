"""The pure core: types, observations, decisions. No input, no output, no clock."""
