#!/bin/sh
# Install the system packages that are missing for a purpose, or print the one line that does.
#
# usage: deps.sh build|test|bench|guest|fresh...
#
# Nothing is asked of the network when nothing is missing. What is there is found by looking for the
# program or header itself, so it does not matter where it came from.
set -eu

: "${PYTHON:=python3}"
missing=

need() { # need PACKAGE TEST...: the package is missing if the test fails
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing="$missing $package"
}
program() { command -v "$1" || command -v "/usr/sbin/$1"; }
header() { printf '#include <%s>\n' "$1" | cc -E -xc -; }
versioned() { program "$1" || ls "/usr/bin/$1"-[0-9]*; }
file() { [ -e "$1" ]; }
python_can() { "$PYTHON" -c "$1"; }
postgresql() { program initdb || ls /usr/lib/postgresql/*/bin/initdb; }
virtiofsd() { file /usr/libexec/virtiofsd || file /usr/lib/qemu/virtiofsd; }

for purpose in "$@"; do
	case $purpose in
	build)
		need gcc program cc
		need libc6-dev header stdio.h
		need clang versioned clang
		need llvm versioned llvm-strip
		need libbpf-dev header bpf/libbpf.h
		need libelf-dev header libelf.h
		need zlib1g-dev header zlib.h
		need python3-venv python_can 'import ensurepip, venv'
		need python3-dev python_can '
import pathlib, sysconfig
assert (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists()'
		;;
	test)
		need bpftool program bpftool
		need chromium program chromium
		need chromium-driver program chromedriver
		need iproute2 program ip
		need libcap2-bin program setcap
		# The other machine's headers: BPF programs are compiled for both.
		case $(uname -m) in
		x86_64) need linux-libc-dev-arm64-cross file /usr/aarch64-linux-gnu/include/asm/ptrace.h ;;
		esac
		need postgresql postgresql
		need strace program strace
		need util-linux program setpriv
		need wrk program wrk
		;;
	bench)
		need python3-bpfcc file /usr/lib/python3/dist-packages/bcc
		need wrk program wrk
		;;
	guest)
		need e2fsprogs program mkfs.ext4
		need qemu-system-x86 program qemu-system-x86_64
		# The daemon that shares files was QEMU's own until bookworm; from trixie on it is a package.
		case $(. /etc/os-release && echo "${VERSION_CODENAME-}") in
		bullseye | bookworm | focal | jammy) need qemu-system-common virtiofsd ;;
		*) need virtiofsd virtiofsd ;;
		esac
		need util-linux program unshare
		;;
	fresh)
		need debootstrap program debootstrap
		need git program git
		need util-linux program unshare
		;;
	*)
		echo "deps: unknown purpose $purpose" >&2
		exit 2
		;;
	esac
done

[ -n "$missing" ] || exit 0
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
missing=${missing% }

as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
line="apt-get install -y --no-install-recommends $missing"

if ! command -v apt-get >/dev/null; then
	echo "deps: missing, by the names of Debian's packages: $missing" >&2
	echo "  Fedora: dnf install clang llvm gcc libbpf-devel elfutils-libelf-devel zlib-devel python3-devel" >&2
	echo "  Alpine: apk add clang llvm gcc musl-dev linux-headers libbpf-dev elfutils-dev zlib-dev python3-dev" >&2
	exit 1
fi
# Without a terminal sudo must not ask for a password that nobody will type.
if [ -n "$as_root" ] && ! { command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; }; then
	echo "deps: missing packages; as root: apt-get update && $line" >&2
	exit 1
fi
echo "deps: installing $missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
	$as_root env DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1 || {
		tail -n 20 "$log" >&2
		echo "deps: failed: $*" >&2
		exit 1
	}
}
run apt-get -qq update
run apt-get -qq install -y --no-install-recommends $missing
