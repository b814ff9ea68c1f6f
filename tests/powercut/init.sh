#!/bin/busybox sh
# First program of the outer guest: finds the disk and hands over to boot.sh, which is on it.

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for word in $(/bin/busybox cat /proc/cmdline); do
	case $word in
	pivotd.modules=*) modules=$(echo "${word#*=}" | /bin/busybox tr , ' ') ;;
	esac
done
for module in $modules; do
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
