"""What the host shows: files, processes, storage that may hang."""
