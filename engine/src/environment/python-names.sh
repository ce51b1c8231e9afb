# What the distributions in folders say of themselves, `name==version` a line; their headers end at the first empty line.
names() {
  local folder info
  for folder; do
    for info in "$folder"/*.dist-info/METADATA; do
      awk -F ': ' '/^\r?$/ { exit } $1 == "Name" { name = $2 } $1 == "Version" { version = $2 } END { print name "==" version }' "$info"
    done
  done | tr -d '\r'
}
