# Installs Python packages and packs them onto the disk. stdin has the requirements, one a line; stderr is for people, stdout for
# the host: a line for each package that is there.
set -euo pipefail
export UV_CACHE_DIR=/tmp/cache UV_HTTP_TIMEOUT=120 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never
root=/tmp/layer
mkdir -p "$root/python"
# One file system for both, so that what was unpacked is not copied. No package's own code runs: wheels only.
uv pip install --python /usr/bin/python3 --target "$root/python" --link-mode hardlink --only-binary :all: \
    --default-index "$INSTALL_REGISTRY/pypi/simple/" --color never --no-progress -r -
rm -rf "$UV_CACHE_DIR" "$root/python/.lock"
# What each says of itself, before an empty line ends its headers.
for info in "$root"/python/*.dist-info/METADATA; do
  awk -F ': ' '/^\r?$/ { exit } $1 == "Name" { name = $2 } $1 == "Version" { version = $2 } END { print name "==" version }' "$info"
done | tr -d '\r'
echo 'Packing' >&2
mkfs.erofs --quiet -x-1 -T0 --all-root -U00000000-0000-4000-8000-73616e64626f /dev/vdb1 "$root" >&2
