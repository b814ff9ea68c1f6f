"""The pure core: words, what was seen, what to do. No input, no output, no clock."""
