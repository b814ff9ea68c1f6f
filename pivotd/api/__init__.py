"""HTTP over the daemon's Unix socket; imported only after recovery."""
