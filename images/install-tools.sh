#!/bin/sh
# Installs what building the VM image and running VMs needs, as far as it is missing. Silent and quick when nothing is.
# With `tests`: also what the tests need beside that. Debian 12 and later, as root or through sudo; other distributions are told what to install.
set -eu

# "a file that shows it is there|Debian's package". Files, not package names: what was installed otherwise counts too.
needs='
bin/qemu-system-x86_64|qemu-system-x86
bin/mmdebstrap|mmdebstrap
bin/newuidmap|uidmap
share/keyrings/debian-archive-keyring.gpg|debian-archive-keyring
bin/mkfs.erofs|erofs-utils
bin/gcc|gcc
include/stdio.h|libc6-dev
include/gelf.h|libelf-dev
bin/ld|binutils
bin/make|make
bin/flex|flex
bin/bison|bison
bin/bc|bc
bin/xz|xz-utils
bin/perl|perl-base
share/ca-certificates|ca-certificates
'

missing=
for need in $needs; do
    file=${need%%|*}
    [ -e "/usr/$file" ] || [ -e "/usr/s$file" ] || [ -e "/usr/local/$file" ] || missing="$missing ${need##*|}"
done
# By what works: both come in many ways, and not only from Debian.
if [ "${1-}" = tests ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
    command -v npm >/dev/null || missing="$missing npm"
    command -v strace >/dev/null || missing="$missing strace"
fi
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "This host lacks what Debian has in these packages; please install them:$missing" >&2
    exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "Please run as root: apt-get install --no-install-recommends$missing" >&2; exit 1; }
    as_root=sudo
fi
echo "Installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get -qq update
# Word splitting is meant: one package a word. Recommended packages would bring the desktop's half of QEMU.
# shellcheck disable=SC2086
apt_install() { $as_root apt-get --yes --no-install-recommends "$@" install $missing </dev/null; }
# Packages of another suite can stand in the way, such as a newer qemu-utils: what has to go for it is said first.
apt_install --simulate | sed -n 's/^Remv \(.*\)/Removing \1, with which they do not go together/p' >&2
# Standard output belongs to whoever called this.
apt_install -qq -o Dpkg::Use-Pty=0 >&2
