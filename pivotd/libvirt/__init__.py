"""Domains that libvirt manages: libvirt changes the guest, pivotd looks at QEMU through it."""
