# Sourced by scripts that fetch another Debian release: mirror says where from.

# PIVOTD_MIRROR, or the archive that this host itself was installed from: the one that offers main without -security.
mirror() {
	[ -z "${PIVOTD_MIRROR:-}" ] || { echo "$PIVOTD_MIRROR"; return; }
	apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' |
		awk '$2 !~ /security|updates|backports/ && $1 ~ /debian/ { print $1; exit }'
}
