#!/bin/busybox sh
# The host that loses its power: what is mounted here, and the one program that it runs.

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox mount -t tmpfs run /run
exec </dev/console >/dev/console 2>&1
for port in /dev/ttyS0 /dev/ttyS1; do
	/bin/busybox stty -F "$port" raw -echo
done
export PATH=/usr/bin:/bin:/sbin PYTHONPATH=/opt/pivotd:/opt/packages PYTHONDONTWRITEBYTECODE=1
cd /opt/pivotd || echo 'FAILED no /opt/pivotd'
python3 -m tests.powercut.inside || echo "FAILED status $?"
/bin/busybox sync
/bin/busybox poweroff -f
