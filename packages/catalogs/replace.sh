#!/bin/sh
# Replaces a catalog with the names in a file: see README.md beside this.
set -eu
catalog=${1:?pypi or npm} names=${2:?a file of names, one a line}
case $catalog in
pypi) normalise() { tr '[:upper:]' '[:lower:]' | sed -E 's/[-_.]+/-/g'; } ;;
npm) normalise() { cat; } ;;
*) echo "replace.sh: the catalog is pypi or npm, not $catalog" >&2; exit 2 ;;
esac
target=$(dirname "$0")/$catalog.txt
sed -E 's/#.*//; s/^[[:space:]]+//; s/[[:space:]]+$//; /^$/d' "$names" | normalise | awk '!seen[$0]++' > "$target.new"
if ! [ -s "$target.new" ]; then
    rm "$target.new"
    echo "replace.sh: there are no names in $names" >&2
    exit 1
fi
mv "$target.new" "$target"
echo "$target: $(wc -l < "$target") names"
