"""The test ground: real QEMU, a real guest, and a proxy between pivotd and QEMU."""
