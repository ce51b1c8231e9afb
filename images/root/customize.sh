# Turns what mmdebstrap installed into the guest's root and packs it. It runs outside the tree: $1 is the tree. When an
# ordinary user builds, it runs in a user namespace that can not reach the user's files. So what it needs was put into
# $1/inputs before (what images.lock names, and the files beside this one), and root.erofs is fetched from there after.
set -eu
cd /
tree=$1
inputs=$tree/inputs

echo 'step: Node.js, npm, esbuild and uv'
tar -xzf "$inputs/node.tgz" -C "$inputs" package/bin/node
strip -s "$inputs/package/bin/node"
install -m 0755 "$inputs/package/bin/node" "$tree/usr/local/bin/node"
mkdir -p "$tree/usr/local/lib/node_modules/npm"
tar -xzf "$inputs/npm.tgz" -C "$tree/usr/local/lib/node_modules/npm" --strip-components=1 --no-same-owner \
    --exclude='package/docs' --exclude='package/man'
ln -s ../lib/node_modules/npm/bin/npm-cli.js "$tree/usr/local/bin/npm"
ln -s ../lib/node_modules/npm/bin/npx-cli.js "$tree/usr/local/bin/npx"
chroot "$tree" unzip -q -j /inputs/uv.whl '*.data/scripts/*' -d /usr/local/bin
chmod 0755 "$tree/usr/local/bin/uv" "$tree/usr/local/bin/uvx"
# Not where programs look for commands: a package that brings another esbuild is to be found.
mkdir -p "$tree/usr/local/lib/sandbox/bin"
tar -xzf "$inputs/esbuild.tgz" -C "$inputs" package/bin/esbuild
install -m 0755 "$inputs/package/bin/esbuild" "$tree/usr/local/lib/sandbox/esbuild"
install -m 0644 "$inputs/typescript.cjs" "$tree/usr/local/lib/sandbox/typescript.cjs"
# What programs find before the real ones.
install -m 0755 "$inputs/node" "$inputs/npm" "$inputs/uv" "$tree/usr/local/lib/sandbox/bin/"
ln -s npm "$tree/usr/local/lib/sandbox/bin/npx"
ln -s uv "$tree/usr/local/lib/sandbox/bin/uvx"
chroot "$tree" /usr/local/lib/sandbox/esbuild --version
chroot "$tree" node -e 'if (!process.release.lts) throw new Error(process.version + " is no LTS release")'
chroot "$tree" npm --version
chroot "$tree" uv --version

echo 'step: users, mount points and files of /etc'
echo 'sandbox:x:1000:1000:sandbox:/home/user:/bin/bash' >>"$tree/etc/passwd"
echo 'sandbox:x:1000:' >>"$tree/etc/group"
echo 'sandbox:!:1::::::' >>"$tree/etc/shadow"
rm -rf "$tree/home"
mkdir -p "$tree/workspace" "$tree/home/user" "$tree/packages"
# Where a package layer is mounted, if a VM has one: interpreters look there without being told.
layers=/packages
for number in 2 3 4 5 6 7 8 9 10 11 12; do
  mkdir "$tree/packages-$number"
  layers="$layers /packages-$number"
done
printf '%s/python\n' $layers >"$tree/usr/lib/python3/dist-packages/sandbox-packages.pth"
ln -s packages/javascript/node_modules "$tree/node_modules"
chown 1000:1000 "$tree/workspace" "$tree/home/user"
chmod 1777 "$tree/tmp" "$tree/var/tmp"
# mmdebstrap lends the tree the host's name and resolver: neither may end up in the image.
rm -f "$tree/etc/hostname" "$tree/etc/resolv.conf" "$tree/etc/machine-id"
echo sandbox >"$tree/etc/hostname"
printf '%s\n' '127.0.0.1 localhost sandbox' '::1 localhost ip6-localhost ip6-loopback' >"$tree/etc/hosts"
# There is nobody to ask for a name: none is known, at once, and that is not called temporary, which would invite to try again.
sed -i 's/^hosts:.*/hosts: files/' "$tree/etc/nsswitch.conf"
echo 'nameserver 127.0.0.1' >"$tree/etc/resolv.conf"
printf '%s\n' '[global]' 'retries = 0' 'disable-pip-version-check = true' >"$tree/etc/pip.conf"
printf '%s\n' 'fetch-retries=0' 'update-notifier=false' 'fund=false' 'audit=false' \
    >"$tree/usr/local/lib/node_modules/npm/npmrc"
: >"$tree/etc/machine-id"
ln -sf python3 "$tree/usr/bin/python"
# Without a name and an address git refuses to commit.
printf '%s\n' '[user]' '	name = sandbox' '	email = sandbox@localhost' '[init]' '	defaultBranch = main' >"$tree/etc/gitconfig"
# pip has two beginnings: the command, and `python3 -m pip`.
install -m 0644 "$inputs/no_network.py" "$tree/usr/lib/python3/dist-packages/pip/no_network.py"
for beginning in /usr/bin/pip /usr/bin/pip3 /usr/lib/python3/dist-packages/pip/__main__.py; do
  sed -i -E 's/^( *)from pip\._internal\.cli\.main import main.*/\1from pip.no_network import check\n\n\1check("pip", sys.argv[1:])\n&/' \
      "$tree$beginning"
  grep -q no_network "$tree$beginning"
done
# There is no apt that a `pip install` could disturb.
rm -f "$tree"/usr/lib/python3*/EXTERNALLY-MANAGED

echo 'step: locales'
for locale in de_DE en_GB en_US es_ES fr_FR it_IT ja_JP pt_BR zh_CN; do
  chroot "$tree" localedef -i "$locale" -f UTF-8 "$locale.UTF-8"
done

echo 'step: how Python is started'
chroot "$tree" python3 - <<'END'
import importlib.util, marshal
source, names = open("/inputs/start.py").read(), {"__name__": "start"}
exec(source, names)
code = names["unseen"](compile(source, "start.py", "exec"))
with open("/usr/local/lib/sandbox/start.pyc", "wb") as file:
    file.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
END

echo 'step: compiling the Python library'
# The image has one timestamp for all files, so bytecode must not depend on that of its source: it is never checked,
# which also spares the guest a comparison at each import.
chroot "$tree" sh -c \
    'exec python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.*'

echo 'step: leaving out what no guest needs'
find "$tree" -xdev ! -type l -perm /6000 -exec chmod a-s {} +
rm -rf "$tree"/usr/share/bash-completion "$tree"/usr/share/i18n "$tree"/usr/share/bug "$tree"/usr/share/doc-base "$tree"/usr/share/lintian \
    "$tree"/usr/share/pixmaps "$tree"/var/cache/* "$tree"/var/log/* "$tree"/var/lib/dpkg/*-old
rm -f "$tree"/etc/passwd- "$tree"/etc/group- "$tree"/etc/shadow- "$tree"/etc/gshadow-

echo 'step: packing'
# Some directories are mount points for the guest: the host's devices are mounted there meanwhile, and mmdebstrap keeps
# files in them which it still needs. apt's files and this script's inputs are no part of the image. One time and one
# UUID for all make two builds from the same packages equal.
mkfs.erofs --quiet $SANDBOX_EROFS_OPTIONS -x-1 -T0 -U00000000-0000-4000-8000-73616e64626f \
    --exclude-regex='^(dev|proc|run|sys|tmp|var/tmp)/.+' --exclude-regex='^(inputs|etc/apt|var/lib/apt)($|/)' \
    "$inputs/root.erofs" "$tree"
