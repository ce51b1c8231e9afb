# Builds QEMU in the tree that mmdebstrap has installed the tools in: $1 is the tree. When an ordinary user builds, this
# runs in a user namespace that can not reach the user's files. So what it needs (devices.mak, the patches) was put into
# $1/inputs before, and what it makes (qemu-system-x86_64, versions) is fetched from there after.
set -eu
cd /
tree=$1
inputs=$tree/inputs

echo 'step: fetching the source'
# From where the tools came, through the same signed index. Newer ones of mmdebstrap write the other form.
if [ -e "$tree/etc/apt/sources.list" ]; then
    sed -n 's/^deb /deb-src /p' "$tree/etc/apt/sources.list" >"$tree/etc/apt/sources.list.d/source.list"
fi
for list in "$tree"/etc/apt/sources.list.d/*.sources; do
    [ ! -e "$list" ] || sed -i 's/^Types: deb$/Types: deb deb-src/' "$list"
done
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --quiet update
(cd "$inputs" && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --quiet source --download-only qemu)

cat >"$inputs/compile.sh" <<'END'
set -eu
cd /inputs
# Debian's own patches are applied by this.
dpkg-source --extract qemu_*.dsc qemu
cd qemu
version=$(dpkg-parsechangelog --show-field Version)
for patch in /inputs/*.patch; do
    patch --strip=1 --forward --fuzz=0 --input="$patch"
done
cp /inputs/devices.mak configs/devices/x86_64-softmmu/sandbox.mak

# The firmware of a machine without ACPI: it hands over to the kernel that QEMU was given. 32-bit code without a library.
meson setup roms/qboot qboot
ninja -C qboot
install -D -m 0644 qboot/bios.bin pc-bios/qboot.rom

echo 'step: configuring'
mkdir build
cd build
# What is not named is off. Of what QEMU's build does by itself, these stay: -fstack-protector-strong, _FORTIFY_SOURCE=2,
# read-only relocations, cleared registers and local variables. Static and still relocated to another address each time.
# The engine asks for what code-cache.patch does if the version says that it "keeps code".
../configure --disable-download --without-default-features --without-default-devices \
    --target-list=x86_64-softmmu --with-devices-x86_64=sandbox \
    --static --enable-pie --enable-stack-protector --disable-debug-info --disable-qom-cast-debug \
    --enable-tcg --enable-kvm --enable-seccomp --enable-fdt=system \
    --enable-avx2 --enable-membarrier --enable-coroutine-pool --enable-trace-backends=nop \
    --disable-tools --disable-docs --disable-guest-agent --disable-install-blobs --audio-drv-list= \
    --with-pkgversion="Debian $version, built by sandbox-mcp as $SANDBOX_QEMU_KEY, keeps code"

echo 'step: compiling'
ninja qemu-system-x86_64
strip -s -o /inputs/qemu-system-x86_64 qemu-system-x86_64

echo 'step: looking at what was built'
/inputs/qemu-system-x86_64 --version
# Whoever relies on it is told when it is not so.
headers=$(readelf --wide --file-header --program-headers --dynamic --symbols --notes qemu-system-x86_64)
holds() {
    printf '%s\n' "$headers" | grep -q "$1" || { echo "QEMU was built without: $2" >&2; exit 1; }
}
holds 'Type: *DYN' 'relocation to another address (PIE)'
holds 'GNU_RELRO' 'read-only relocations'
holds 'FLAGS.*NOW' 'relocations that are all done at the start'
holds 'GNU_STACK .* RW ' 'a stack that is not executable'
holds '__stack_chk_fail' 'stack protector'
holds '__memcpy_chk' '_FORTIFY_SOURCE'
holds 'Build ID: [0-9a-f]\{40\}$' 'the hash of itself by which it knows translated code of its own'
if printf '%s\n' "$headers" | grep -q -e INTERP -e '(NEEDED)'; then
    echo 'QEMU was built with libraries that it loads' >&2
    exit 1
fi
{
    echo "qemu $version"
    dpkg-query --showformat='${Package} ${Version}\n' --show \
        gcc libc6-dev libglib2.0-dev libpcre2-dev libseccomp-dev libfdt-dev zlib1g-dev meson
} >/inputs/versions
END
chroot "$tree" sh /inputs/compile.sh
