#!/bin/sh
# Installs one set of the clients that the product is tested with, and prints its folder:
#
#     install.sh mcp-2.3.0|mcp-1.30.0|adapters   a Python environment: the folder's bin/python runs it
#     install.sh node                            npm packages, with a Node.js of their own: node_modules/.bin/node
#
# From the registries that pip and npm are configured with, exactly what the lock files name, once for each content of
# those: a second run is quick. Ends with 75 when a registry cannot be reached.
set -eu
cd "$(dirname "$0")"
name=$1

case $name in
node) locks="node/package.json node/package-lock.json node/.npmrc" ;;
mcp-* | adapters) locks="python/$name.txt" ;;
*) echo "install.sh: there is no set of clients named '$name'" >&2; exit 1 ;;
esac

install_clients() {
    if [ "$name" = node ]; then
        cp $locks "$folder" && npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund
    else
        python3 -m venv "$folder" &&
            "$folder/bin/python" -m pip install --disable-pip-version-check --only-binary :all: --require-hashes -r "$locks"
    fi
}

# An environment belongs to its interpreter.
version=$([ "$name" = node ] || python3 --version)
key=$(echo "$version" | cat - $locks | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sandbox-mcp-tests
folder=$cache/$name-$key
mkdir -p "$cache"
exec 9>"$cache/$name.lock"
flock 9

if [ ! -e "$folder/installed" ]; then
    echo "Installing the clients '$name' into $folder" >&2
    rm -rf "$folder"
    mkdir "$folder"
    if ! install_clients >"$folder.log" 2>&1; then
        cat "$folder.log" >&2
        rm -rf "$folder"
        # As npm and pip say that they have reached nobody; without retries pip says only that it knows of no version.
        unreachable='ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|NewConnectionError'
        unreachable="$unreachable|Failed to establish a new connection|Temporary failure in name resolution|ConnectTimeout|from versions: none"
        status=1
        if grep -Eq "$unreachable" "$folder.log"; then status=75; fi
        rm -f "$folder.log"
        exit $status
    fi
    rm -f "$folder.log"
fi
touch "$folder/installed"
# What no run has used for a month goes: the locks have changed since.
for other in "$cache/$name"-*/installed; do
    if [ -n "$(find "$other" -mtime +30)" ]; then rm -rf "${other%/installed}"; fi
done
echo "$folder"
