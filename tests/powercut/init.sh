#!/bin/busybox sh
# First program of the outer guest: finds the disk and hands over to boot.sh, which is on it.

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
	/bin/busybox insmod "/lib/modules/$module.ko"
done
tries=100
while [ ! -b /dev/vda ] && [ "$tries" -gt 0 ]; do
	/bin/busybox usleep 50000
	tries=$((tries - 1))
done
/bin/busybox mount -t ext4 /dev/vda /root || {
	echo "FAILED the disk cannot be mounted" >/dev/console
	/bin/busybox poweroff -f
}
exec /bin/busybox switch_root /root /sbin/boot
