#!/bin/sh
# Print "VERSION PROGRAM" for each supported CPython on this machine, oldest first.
# Looked for: python3.N on PATH, then pyenv's. A name on PATH may be a pyenv shim that only complains.
set -eu

program_of() { # the real program behind a command, if it runs and is of version $1
	version=$1
	shift
	"$@" -c '
import sys
if "%d.%d" % sys.version_info[:2] == sys.argv[1] and sys.implementation.name == "cpython":
    print(sys.executable)
' "$version" 2>/dev/null || true
}

for version in 3.10 3.11 3.12 3.13 3.14; do
	program=$(program_of "$version" "python$version")
	if [ -z "$program" ] && command -v pyenv >/dev/null; then
		newest=$(pyenv versions --bare 2>/dev/null | grep "^$version\.[0-9]*\$" | sort -V | tail -1 || true)
		[ -z "$newest" ] || program=$(program_of "$version" "$(pyenv prefix "$newest")/bin/python")
	fi
	[ -z "$program" ] || echo "$version $program"
done
