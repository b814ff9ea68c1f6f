#!/bin/sh
# Fetches the etcd of other Debian releases, without installing anything: etcds.sh [SUITE...], trixie and sid by default.
#
# Each goes, with the libraries it needs, to $PIVOTD_CACHE/etcds/SUITE (.cache without PIVOTD_CACHE). Nothing there is
# configured or run as root's: tests start the binaries with the tree's own dynamic linker (tests/fleet/etcds.py).
set -eu
cd "$(dirname "$0")/../.."
. tests/support/fetch_tree.sh

cache=$(realpath -m "${PIVOTD_CACHE:-.cache}/etcds")
[ "$#" -gt 0 ] || set -- trixie sid
for suite in "$@"; do
	fetch_tree "$suite" "$cache/$suite" 'etcd-server etcd-client libc6'
	echo "$cache/$suite"
done
