#!/bin/sh
# Sets up everything that the tests, the demonstration and the benchmarks need: Debian packages, .venv, the test guest.
#
# Does only what is missing. Root is needed only where Debian packages are missing; without it the command to run is
# printed. PYTHON chooses the interpreter of .venv, PIVOTD_CACHE where the guest is kept.
set -eu
cd "$(dirname "$0")/../.."

packages='qemu-system-x86 qemu-utils busybox-static binutils e2fsprogs btrfs-progs python3-venv strace systemd-container zstd
	libvirt-daemon-system libvirt-clients python3-libvirt gcc libc6-dev etcd-server etcd-client openssl chromium
	debhelper lintian acl ansible-core prometheus tmux zsh fish mandoc man-db'
python=${PYTHON:-/usr/bin/python3}

say() { echo "setup: $*"; }
fail() {
	echo "setup: $*" >&2
	exit 1
}
is_root() { [ "$(id -u)" -eq 0 ]; }

# --- Debian packages

command -v dpkg-query >/dev/null || fail 'this is not Debian or a relative of it: install the counterparts of' "$packages"
missing=
for package in $packages; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
	install="apt-get install -y --no-install-recommends$missing"
	is_root || fail "packages are missing; run once: sudo sh -c 'apt-get update && $install'"
	say "$install"
	export DEBIAN_FRONTEND=noninteractive
	# The lists may be absent or older than the archive.
	$install || { apt-get update && $install; }
fi

# --- Python packages, exactly those of requirements.txt

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is not Python 3.11 or newer: set PYTHON"
key_of() { { "$python" -c 'import sys; print(sys.version, sys.executable)'; cat "$@"; } | sha256sum; }
is_current() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }

key=$(key_of requirements.txt)
if ! is_current .venv/requirements.stamp "$key"; then
	say "creating .venv with $python"
	rm -f .venv/*.stamp
	"$python" -m venv --clear .venv
	pip install --no-deps -r requirements.txt
	echo "$key" >.venv/requirements.stamp
fi
key=$(key_of pyproject.toml)
if ! is_current .venv/project.stamp "$key"; then
	say 'installing pivotd into .venv'
	pip install --no-deps -e .
	echo "$key" >.venv/project.stamp
fi

# --- libvirt's Python module: Debian's own, as it is compiled for Debian's Python; pip would need libvirt's headers

bindings=$("$python" -c 'from importlib.util import find_spec as f; print(f("libvirt").origin if f("libvirt") else "")')
if [ -n "$bindings" ] && [ ! -e .venv/libvirt.stamp ]; then
	say "linking libvirt's Python module into .venv"
	site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
	ln -sf "${bindings%/*}"/libvirt.py "${bindings%/*}"/libvirt_qemu.py "${bindings%/*}"/libvirtmod*.so "$site/"
	: >.venv/libvirt.stamp
fi

# --- the test guest

guest() { .venv/bin/python -m tests.support.guest_assets >/dev/null; }
if ! guest; then
	is_root || fail 'if apt knows no such package, run once: sudo apt-get update'
	apt-get update
	guest
fi
say 'everything is in place'
