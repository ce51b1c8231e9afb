# Installs npm packages and packs them onto the disk. stdin has the requirements, one a line; stderr is for people, stdout for the
# host: a line of JSON for each package that is there.
set -euo pipefail
root=/tmp/layer
mkdir -p "$root/javascript"
cd "$root/javascript"
echo '{"name":"packages","private":true}' >package.json
mapfile -t requirements
# No package's own code runs: no scripts.
npm install --ignore-scripts --no-audit --no-fund --no-update-notifier --no-progress --loglevel=http --cache /tmp/cache \
    --registry "$INSTALL_REGISTRY/npm/" -- "${requirements[@]}" >&2
jq -c '.packages | to_entries[] | {place: .key, name: .value.name, version: .value.version, hash: .value.integrity,
    bundled: .value.inBundle}' node_modules/.package-lock.json
rm -rf /tmp/cache package-lock.json
echo 'Packing' >&2
mkfs.erofs --quiet -x-1 -T0 --all-root -U00000000-0000-4000-8000-73616e64626f /dev/vdb1 "$root" >&2
