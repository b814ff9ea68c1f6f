"""QEMU's side: one monitor connection per domain, its commands, and what its replies mean."""
