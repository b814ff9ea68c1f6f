#!/bin/sh
# Runs this checkout on a fresh Debian 13: trixie.sh [COMMAND], by default both commands of the README. Needs root and git.
#
# debootstrap makes $PIVOTD_CACHE/trixie (.cache without PIVOTD_CACHE) where there is none: nothing in it but systemd and
# make. What the checkout needs beyond that, its own setup installs. The tree stays, for the next run and for
# tests/systemd: no container boots in here, so they boot the tree from outside. Mounts and processes go with this
# script, however it ends. PIVOTD_MIRROR names another archive.
set -eu
cd "$(dirname "$0")/../.."
. tests/support/mirror.sh

tree=$(realpath -m "${PIVOTD_CACHE:-.cache}/trixie")
checkout=$tree/srv/pivotd

fail() {
	echo "trixie: $*" >&2
	exit 1
}

[ "$(id -u)" -eq 0 ] || fail 'a Debian of its own can only be made and entered by root'
if ! [ -e "$tree/.complete" ]; then
	command -v debootstrap >/dev/null || fail 'run once: apt-get install debootstrap'
	site=$(mirror)
	[ -n "$site" ] || fail 'apt has no Debian mirror configured; set PIVOTD_MIRROR'
	rm -rf "$tree"
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,make,ca-certificates trixie "$tree" "$site"
	touch "$tree/.complete"
fi

# This host's way to package archives.
for file in etc/resolv.conf etc/pip.conf etc/ssl/certs/ca-certificates.crt; do
	[ ! -e "/$file" ] || cp --dereference --remove-destination "/$file" "$tree/$file"
done

# The files of the checkout as they are now; what an earlier run has built beside them stays.
mkdir -p "$checkout"
find "$checkout" -mindepth 1 -maxdepth 1 ! -name .venv ! -name .cache -exec rm -r {} +
git ls-files -z --cached --others --exclude-standard | xargs -0 -r ls -d 2>/dev/null |
	tar --create --files-from=- | tar --extract --no-same-owner --directory="$checkout"

# As a boot does it: what an earlier run has left there is gigabytes.
find "$tree/tmp" -mindepth 1 -delete

[ "$#" -gt 0 ] || set -- 'make demo && make test'
export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 PIVOTD_CHROOT=1
unset PYTHON PIVOTD_CACHE PIVOTD_TRIXIE PIVOTD_TEST_QEMUS VIRTUAL_ENV
# Everything is mounted in a mount namespace of its own, and ends with its first process.
exec unshare --mount --pid --fork --kill-child sh -euc '
	tree=$1
	# A mount point: below any other root no mount namespace can be made.
	mount --bind "$tree" "$tree"
	mount -t proc proc "$tree/proc"
	mount --rbind /sys "$tree/sys"
	mount --rbind /dev "$tree/dev"
	mount -t tmpfs run "$tree/run"
	# Not chroot alone: who enters the mount namespace of such a process, as libvirtd does, is at the root of this host.
	cd "$tree"
	pivot_root . mnt
	exec chroot . sh -euc "umount -l /mnt && cd /srv/pivotd && $2"
' sh "$tree" "$*"
