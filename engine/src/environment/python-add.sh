# Adds Python packages to those of a layer, whose parts are mounted, and packs what is new onto the disk. In and out like python.sh; the
# lines of what is new begin with `+`. Ends with 75 when the whole set has to be installed anew.
set -euo pipefail
export UV_CACHE_DIR=/tmp/cache UV_HTTP_TIMEOUT=120 UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never
registry=(--python /usr/bin/python3 --only-binary :all: --default-index "$INSTALL_REGISTRY/pypi/simple/" --color never --no-progress)
root=/tmp/layer
there=()
for folder in /packages/python /packages-*/python; do
  [ ! -d "$folder" ] || there+=("$folder")
done
part=vdb$((${#there[@]} + 1))
# As uv writes them.
names "${there[@]}" | while IFS= read -r package; do
  name=${package%%==*}
  name=${name,,}
  echo "${name//[_.]/-}==${package#*==}"
done | sort >/tmp/there
# Nobody's versions depend on what others have asked for: what would be another version, or is not needed, does not fit.
uv pip compile "${registry[@]}" --no-header --no-annotate - | sort >/tmp/wanted
[ -z "$(comm -23 /tmp/there /tmp/wanted)" ] || exit 75
comm -13 /tmp/there /tmp/wanted >/tmp/added
names "${there[@]}"
[ -s /tmp/added ] || exit 0
mkdir -p "$root/python"
uv pip install "${registry[@]}" --target "$root/python" --link-mode hardlink --no-deps -r /tmp/added
rm -rf "$UV_CACHE_DIR" "$root/python/.lock"
cd "$root/python"
for name in *; do
  # A package that is in two places is only found in one.
  case $name in bin | etc | share) continue ;; esac
  for folder in "${there[@]}"; do
    [ ! -e "$folder/$name" ] || exit 75
  done
done
# Its part is not as large as that of a set.
[ "$(du -s --block-size=512 "$root" | cut -f1)" -lt "$(($(cat "/sys/class/block/$part/size") * 9 / 10))" ] || exit 75
names "$root/python" | sed 's/^/+/'
echo 'Packing' >&2
mkfs.erofs --quiet -x-1 -T0 --all-root -U00000000-0000-4000-8000-73616e64626f "/dev/$part" "$root" >&2
