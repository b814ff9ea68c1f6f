"""pivotctl: the client on the command line; it knows the daemon by its HTTP API and, offline, the journal alone."""
