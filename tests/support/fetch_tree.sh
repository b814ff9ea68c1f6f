# Sourced by scripts that fetch programs of another Debian release: fetch_tree SUITE TREE PACKAGES.
#
# The packages, and all that they need, are unpacked below TREE; nothing is installed and no script of a package runs.
# apt's mirror and keys are used as this host has them configured; PIVOTD_MIRROR names another one.
. tests/support/mirror.sh

fail() {
	echo "${0##*/}: $*" >&2
	exit 1
}

fetch_tree() {
	suite=$1 tree=$2 packages=$3 state=$2.apt
	[ ! -e "$tree/.complete" ] || return 0
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
	# No package is installed as far as this apt knows, so everything that is needed is fetched with it.
	# shellcheck disable=SC2086 # a list of words
	apt-get "$@" --yes --download-only -o Dpkg::Options::= install $packages >/dev/null || fail "$suite: download failed"
	# What lays out /bin, /lib and so on comes first.
	for package in "$state"/archives/base-files_*.deb "$state"/archives/*.deb; do
		[ -e "$package" ] || continue
		dpkg-deb --fsys-tarfile "$package" | tar -x -C "$tree" --no-same-owner --keep-directory-symlink \
			--exclude './usr/share/doc/*' --exclude './usr/share/locale/*' --exclude './usr/share/man/*' --exclude './dev/*'
	done
	rm -rf "$state"
	touch "$tree/.complete"
}
