#!/bin/busybox sh
# The whole guest: finds its disks, writes numbered blocks, says on the serial port what it was told is on disk.
#
#   READY                    every disk was found; with hold=on nothing happens until a line comes in on the second serial port
#   REFUSED why              a disk is missing or the command line is wrong; the guest powers itself off
#   START disk first found   writing begins at number `first`; the highest number found on the disk is `found` (-1: none)
#   ACK disk n               number n and all before it since START were written and flushed
#   STOPPED disk n           writing or flushing number n failed; this writer has ended
#   BUSY disk                the dirtier has been once through its region
#
# Number n is written to block n modulo `slots`: 128 lines of 32 bytes, each with the disk's name and n.
# The shell's own printf writes, `sync -d` flushes (fdatasync): without a program start per block this is quick even
# without hardware virtualization.

/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1

disks='' modules='' write=acks rate=0 batch=1 slots=256 flush=on hold=off
for word in $(cat /proc/cmdline); do
	case $word in
	pivotd.disks=*) disks=$(echo "${word#*=}" | tr , ' ') ;;
	pivotd.modules=*) modules=$(echo "${word#*=}" | tr , ' ') ;;
	pivotd.write=*) write=${word#*=} ;;
	pivotd.rate=*) rate=${word#*=} ;;
	pivotd.batch=*) batch=${word#*=} ;;
	pivotd.slots=*) slots=${word#*=} ;;
	pivotd.flush=*) flush=${word#*=} ;;
	pivotd.hold=*) hold=${word#*=} ;;
	esac
done

refuse() {
	echo "REFUSED $*"
	poweroff -f
	while :; do sleep 60; done
}

find_device() { # by serial number: device letters depend on buses and timing
	for sys in /sys/block/*; do
		for file in "$sys/serial" "$sys/device/serial" "$sys/device/vpd_pg80"; do
			if [ -r "$file" ] && tr -d '\000-\040\177-\377' <"$file" | grep -q -x "$1"; then
				echo "/dev/${sys##*/}"
				return
			fi
		done
	done
}

write_acks() { # disk device
	disk=$1 device=$2
	found=$(dd if="$device" bs=4096 count="$slots" 2>/dev/null | tr -d '\000' |
		awk -v disk="$disk" 'BEGIN { max = -1 } $1 == "pivotd" && $2 == disk && $3 > max { max = $3 + 0 } END { print max }')
	# A new life begins at a new round, so that number and place always agree.
	n=$(((found + slots) / slots * slots))
	exec 4<"$device" # keeps the page cache when fd 3 is opened again
	echo "START $disk $n $found"
	digits=0
	pause_us=0
	[ "$rate" -eq 0 ] || pause_us=$((1000000 / rate))
	while :; do
		left=$batch
		while [ "$left" -gt 0 ]; do
			[ $((n % slots)) -ne 0 ] || exec 3<>"$device"
			if [ "${#n}" -ne "$digits" ]; then # a $(…) is a fork: only when the width changes
				digits=${#n}
				prefix=$(printf 'pivotd %-9s %*s.' "$disk" $((14 - digits)) '')
				prefix=${prefix%.}
			fi
			line="$prefix$n
"
			line="$line$line$line$line$line$line$line$line"
			line="$line$line$line$line$line$line$line$line$line$line$line$line$line$line$line$line"
			printf %s "$line" >&3 || break 2
			n=$((n + 1)) left=$((left - 1))
		done
		if [ "$flush" = on ]; then
			sync -d "$device" || break
		fi
		echo "ACK $disk $((n - 1))"
		[ "$pause_us" -eq 0 ] || usleep "$pause_us"
	done
	echo "STOPPED $disk $n"
}

write_busy() { # disk device: as fast as it can, behind the region of the numbered blocks
	blocks=$(($(cat "/sys/block/${2##*/}/size") / 128 - 256))
	while dd if=/dev/zero of="$2" bs=65536 seek=256 count="$blocks" oflag=direct conv=notrunc 2>/dev/null; do
		echo "BUSY $1"
	done
	echo "STOPPED $1 busy"
}

for module in $modules; do
	insmod "/lib/modules/$module.ko" || refuse "module $module cannot be loaded"
done

for disk in $disks; do
	device=''
	tries=40
	while [ -z "$device" ] && [ "$tries" -gt 0 ]; do
		device=$(find_device "$disk")
		[ -n "$device" ] || usleep 50000
		tries=$((tries - 1))
	done
	# Without this check a wrong module order gives a plain file in memory that takes every write.
	[ -b "$device" ] || refuse "no block device for $disk"
	[ "$(cat "/sys/block/${device##*/}/size")" -ge $((slots * 8)) ] || refuse "$disk is too small"
	devices="$devices $disk:$device"
done
[ -n "$devices" ] || refuse "no disk was named"
echo READY

# A guest that waits here has read nothing of its disks: its state can be saved, and be let go on any image later.
[ "$hold" = off ] || read -r _ </dev/ttyS1

for pair in $devices; do
	case $write in
	idle) ;;
	acks) write_acks "${pair%%:*}" "${pair#*:}" & ;;
	busy) write_busy "${pair%%:*}" "${pair#*:}" & ;;
	both)
		write_acks "${pair%%:*}" "${pair#*:}" &
		write_busy "${pair%%:*}" "${pair#*:}" &
		;;
	*) refuse "unknown kind of writing: $write" ;;
	esac
done
while :; do
	wait
	sleep 3600
done
