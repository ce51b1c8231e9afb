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
names "$root/python"
echo 'Packing' >&2
mkfs.erofs --quiet -x-1 -T0 --all-root -U00000000-0000-4000-8000-73616e64626f /dev/vdb1 "$root" >&2
