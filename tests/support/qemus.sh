#!/bin/sh
# Fetches the QEMU of other Debian releases, without installing anything: qemus.sh [SUITE...], trixie and sid by default.
#
# Each goes, with the libraries it needs, to $PIVOTD_CACHE/qemus/SUITE (.cache without PIVOTD_CACHE). Nothing there is
# configured or run as root's: tests start the binary with the tree's own dynamic linker (tests/support/qemus.py).
# apt's mirror and keys are used as this host has them configured; PIVOTD_MIRROR names another one.
set -eu
cd "$(dirname "$0")/../.."

cache=$(realpath -m "${PIVOTD_CACHE:-.cache}/qemus")
packages='qemu-system-x86 qemu-utils libc6 seabios'

fail() {
	echo "qemus: $*" >&2
	exit 1
}
. tests/support/mirror.sh

fetch() {
	suite=$1 tree=$cache/$1 state=$cache/$1.apt
	[ -x "$tree/usr/bin/qemu-system-x86_64" ] && [ -e "$tree/.complete" ] && return 0
	rm -rf "$tree" "$state"
	mkdir -p "$tree" "$state/lists/partial" "$state/archives/partial" "$state/etc/preferences.d"
	: >"$state/status"
	site=$(mirror)
	[ -n "$site" ] || fail 'apt has no Debian mirror configured; set PIVOTD_MIRROR'
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $suite main" >"$state/etc/sources.list"
	set -- -qq -o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$state/status" \
		-o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives" -o "Dir::Etc::sourcelist=$state/etc/sources.list" \
		-o Dir::Etc::sourceparts=/dev/null -o "Dir::Etc::preferencesparts=$state/etc/preferences.d" \
		-o Dir::Etc::preferences=/dev/null -o Acquire::Languages=none -o APT::Sandbox::User="$(id -un)" \
		-o APT::Install-Recommends=false -o Debug::NoLocking=true -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false
	apt-get "$@" update || fail "$suite: its package list cannot be had from $site"
	# No package is installed as far as this apt knows, so everything that QEMU needs is fetched with it.
	# shellcheck disable=SC2086 # a list of words
	apt-get "$@" --yes --download-only -o Dpkg::Options::= install $packages >/dev/null || fail "$suite: download failed"
	for package in "$state"/archives/*.deb; do
		dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tree" --no-same-owner --keep-directory-symlink \
			--exclude './usr/share/doc/*' --exclude './usr/share/locale/*' --exclude './usr/share/man/*' --exclude './dev/*'
	done
	rm -rf "$state"
	touch "$tree/.complete"
}

[ "$#" -gt 0 ] || set -- trixie sid
for suite in "$@"; do
	fetch "$suite"
	echo "$cache/$suite"
done
