"""pivotd moves the disks of running QEMU guests from one image to another and is never unsure which image is right."""

__version__ = "0.1.0"
