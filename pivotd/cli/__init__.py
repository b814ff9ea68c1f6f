"""pivotctl: the client on the command line. Knows the daemon by its HTTP API and, offline, the journal by its reader."""
