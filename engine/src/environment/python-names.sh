# What the distributions in a folder say of themselves, `name==version` a line; their headers end at the first empty line.
names() {
  local info
  for info in "$1"/*.dist-info/METADATA; do
    awk -F ': ' '/^\r?$/ { exit } $1 == "Name" { name = $2 } $1 == "Version" { version = $2 } END { print name "==" version }' "$info"
  done | tr -d '\r'
}
