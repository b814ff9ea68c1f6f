#!/bin/sh
# Builds dist/pivotd_VERSION_ARCH.deb for the Debian release that this runs on, from the files of this checkout as they are now.
#
# The version is that of pivotd and, where the commit is no release, its time and name; DEB_VERSION chooses another. All
# times in the package are that of the commit (SOURCE_DATE_EPOCH), so that the same commit gives the same package.
# With --environment, only these two are printed. pip fetches the libraries. As root, what is missing to build is installed; without, the command is printed.
set -eu
cd "$(dirname "$0")/.."

fail() {
	echo "make deb: $*" >&2
	exit 1
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' pivotd/__init__.py)
if [ -z "${DEB_VERSION:-}" ] && [ "$(git describe --exact-match --tags --match "v$version" 2>/dev/null)" != "v$version" ]; then
	DEB_VERSION=$version~git$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd.%h)
fi
: "${DEB_VERSION:=$version}"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH
if [ "${1:-}" = --environment ]; then
	echo "DEB_VERSION=$DEB_VERSION SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"
	exit
fi

[ -r /etc/os-release ] || fail 'this is not Debian or a relative of it'
. /etc/os-release
packages='debhelper python3-venv'
missing=
for package in $packages; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
	install="apt-get install -y --no-install-recommends$missing"
	[ "$(id -u)" -eq 0 ] || fail "packages are missing; run once: sudo $install"
	export DEBIAN_FRONTEND=noninteractive
	$install || { apt-get update && $install; }
fi

# In a directory of its own, which is made anew: a build starts from nothing that the last one has left.
place=build/deb/pivotd
rm -rf "$place"
mkdir -p "$place" dist
if [ -e .git ]; then git ls-files -z --cached --others --exclude-standard; else find . \( -type f -o -type l \) -not -path './build/*' -print0; fi |
	xargs -0 -r ls -d 2>/dev/null | tar --create --files-from=- | tar --extract --no-same-owner --directory="$place"
cat >"$place/debian/changelog" <<END
pivotd ($DEB_VERSION~deb${VERSION_ID:-0}) ${VERSION_CODENAME:-unstable}; urgency=medium

  * See CHANGELOG.md.

 -- The authors of pivotd <pivotd@localhost>  $(LC_ALL=C date -uR -d "@$SOURCE_DATE_EPOCH")
END
(cd "$place" && DEB_RULES_REQUIRES_ROOT=no debian/rules binary >../log 2>&1) || {
	tail -n 30 "$place/../log" >&2
	fail "the build failed; all it said is in $place/../log"
}
mv build/deb/pivotd_*.deb dist/
ls dist/pivotd_"$DEB_VERSION"~deb*.deb
