#!/bin/sh
# Fetches the libvirt of other Debian releases with its QEMU: libvirts.sh [SUITE...], trixie and sid by default.
#
# Each goes to $PIVOTD_CACHE/libvirts/SUITE (.cache without PIVOTD_CACHE), with all that runs there: tests enter the tree
# by chroot, as root (tests/libvirt/libvirtd.py). No service of it is ever started by itself.
set -eu
cd "$(dirname "$0")/../.."
. tests/support/fetch_tree.sh

cache=$(realpath -m "${PIVOTD_CACHE:-.cache}/libvirts")
[ "$#" -gt 0 ] || set -- trixie sid
for suite in "$@"; do
	tree=$cache/$suite
	fetch_tree "$suite" "$tree" 'libvirt-daemon-system python3-libvirt python3-minimal qemu-system-x86 qemu-utils
		base-files libc6 dash coreutils nftables iptables'
	# What the scripts of the packages would have made, as far as libvirtd asks for it.
	mkdir -p "$tree/tmp" "$tree/mnt" "$tree/proc" "$tree/sys" "$tree/dev" "$tree/run"
	cat >"$tree/etc/passwd" <<-'END'
		root:x:0:0:root:/root:/bin/sh
		libvirt-qemu:x:64055:64055::/nonexistent:/bin/false
	END
	cat >"$tree/etc/group" <<-'END'
		root:x:0:
		libvirt:x:64054:
		libvirt-qemu:x:64055:
		kvm:x:64056:
	END
	echo "$tree"
done
