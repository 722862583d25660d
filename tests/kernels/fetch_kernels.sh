#!/bin/sh
# Unpack Debian's newest cloud kernel of each SUITE, and a QEMU and busybox to run it, into a cache.
#
# usage: fetch_kernels.sh [--refresh] SUITE...
#
# SUITE     bullseye (5.10), bookworm (6.1), bookworm-backports or trixie (6.12), trixie-backports, sid
# --refresh look for newer packages although the cache has this suite
#
# The cache is $KERNELTRACE_CACHE, else ~/.cache/kerneltrace: kernels/RELEASE/ and tools/. The system's
# apt sources and installed packages stay as they are: apt works on lists of its own, from the mirrors
# that this machine's apt already uses. Needs apt and dpkg; root only where apt asks for it.
set -eu

cache=${KERNELTRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kerneltrace}
refresh=
[ "${1-}" != --refresh ] || { refresh=1; shift; }
[ $# -gt 0 ] || { echo "usage: fetch_kernels.sh [--refresh] SUITE..." >&2; exit 2; }

say() { echo "fetch_kernels: $*"; }
die() { echo "fetch_kernels: $*" >&2; exit 1; }

kernels=$cache/kernels tools=$cache/tools apt=$cache/apt
mkdir -p "$kernels" "$tools" "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
cache=$(cd "$cache" && pwd) kernels=$cache/kernels tools=$cache/tools apt=$cache/apt

# Two runs at once would take each other's packages away.
exec 9>"$cache/fetch.lock"
flock 9

# kernels/.SUITE holds the release that the suite had when it was fetched.
cached() { [ -z "$refresh" ] && [ -f "$kernels/.$1" ] && [ -d "$kernels/$(cat "$kernels/.$1")" ]; }
have_tools() { [ -x "$tools/usr/bin/qemu-system-x86_64" ] && [ -x "$tools/bin/busybox" ]; }

missing=
for suite in "$@"; do
	if cached "$suite"; then say "$suite: $(cat "$kernels/.$suite") is there"; else missing="$missing $suite"; fi
done
[ -n "$missing" ] || ! have_tools || exit 0

. /etc/os-release
own=${VERSION_CODENAME:-}
[ -n "$own" ] || die "read /etc/os-release: no VERSION_CODENAME (Debian or a derivative with Debian's suites is needed)"
# From QEMU 8 on the emulated cmpxchg16b is right; bookworm's 7.2 corrupts flags (6.12 dies of it in seconds).
case $own in bookworm) qemu_suite=bookworm-backports ;; *) qemu_suite=$own ;; esac

mirror() { # the first URI of the machine's own sources that ends in /$1
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep "/$1/*\$" | sort -u | head -1
}
main=$(mirror debian)
security=$(mirror debian-security)
[ -n "$main" ] || die "find a Debian mirror in apt's sources: none (run apt-get update once)"

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
suites=$missing
have_tools || suites="$suites $own $qemu_suite"
suites=$(printf '%s\n' $suites | sort -u)
for suite in $suites; do
	base=${suite%-backports}
	echo "deb [signed-by=$keyring] $main $suite main"
	case $suite in
	sid | *-backports) ;;
	*) [ -z "$security" ] || echo "deb [signed-by=$keyring] $security $base-security main" ;;
	esac
done >"$apt/sources.list"

# No status file: the versions that are installed here must not hide others. No sandbox user: the
# cache may lie where only its owner can go.
run_apt() {
	command=$1
	shift
	"$command" -qq -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" \
		-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/nonexistent \
		-o Dir::State::status=/dev/null -o APT::Sandbox::User=root "$@"
}

newest() { # the newest version of package $1 in suite $2 or its security archive
	run_apt apt-cache madison "$1" |
		awk -F'|' -v suite="$2" '$3 ~ " " suite "(-security)?/" { gsub(/ /, "", $2); print $2 }' |
		sort -V | tail -1
}

say "reading package lists of" $suites
run_apt apt-get update
cd "$apt/debs"

for suite in $missing; do
	version=$(newest linux-image-cloud-amd64 "$suite")
	[ -n "$version" ] || die "find linux-image-cloud-amd64 in $suite: no such package"
	image=$(run_apt apt-cache show "linux-image-cloud-amd64=$version" | grep -o 'linux-image-[0-9][^ ]*' | head -1)
	release=${image#linux-image-}
	if [ ! -d "$kernels/$release" ]; then
		say "$suite: downloading $release"
		rm -f linux-*.deb
		packages=$image
		# From linux 7 on the image package is empty: vmlinuz and modules are in two others.
		if run_apt apt-cache show "linux-modules-$release" >/dev/null 2>&1; then
			packages="linux-binary-$release linux-modules-$release linux-base-$release"
		fi
		run_apt apt-get download $packages
		new=$(mktemp -d "$kernels/.new.XXXXXX")
		for deb in linux-*.deb; do dpkg -x "$deb" "$new"; done
		chmod 755 "$new"
		mv "$new" "$kernels/$release"
		rm -f linux-*.deb
	fi
	echo "$release" >"$kernels/.$suite"
	say "$suite: $release"
done

if ! have_tools; then
	say "downloading QEMU of $qemu_suite and busybox"
	rm -f ./*.deb
	qemu=$(newest qemu-system-x86 "$qemu_suite")
	busybox=$(newest busybox-static "$own")
	run_apt apt-get download "busybox-static=$busybox" \
		"qemu-system-x86=$qemu" "qemu-system-common=$qemu" "qemu-system-data=$qemu"
	for deb in ./*.deb; do dpkg -x "$deb" "$tools"; done
	rm -f ./*.deb
	[ -x "$tools/bin/busybox" ] || { mkdir -p "$tools/bin" && ln -sf ../usr/bin/busybox "$tools/bin/busybox"; }
	say "$("$tools/usr/bin/qemu-system-x86_64" --version | head -1)"
fi
# The lists are large and stale tomorrow.
rm -rf "$apt/lists" "$apt/cache"
