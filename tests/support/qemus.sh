#!/bin/sh
# Fetches the QEMU of other Debian releases, without installing anything: qemus.sh [SUITE...], trixie and sid by default.
#
# Each goes, with the libraries it needs, to $PIVOTD_CACHE/qemus/SUITE (.cache without PIVOTD_CACHE). Nothing there is
# configured or run as root's: tests start the binary with the tree's own dynamic linker (tests/support/qemus.py).
set -eu
cd "$(dirname "$0")/../.."
. tests/support/fetch_tree.sh

cache=$(realpath -m "${PIVOTD_CACHE:-.cache}/qemus")
[ "$#" -gt 0 ] || set -- trixie sid
for suite in "$@"; do
	fetch_tree "$suite" "$cache/$suite" 'qemu-system-x86 qemu-utils libc6 seabios'
	echo "$cache/$suite"
done
