add() { local sum=$(($1 + $2)); echo "$sum"; }
value=$(add 6 36)
for item in a b "$value"; do
  [[ $item == a ]] && echo "item $item" || printf '%s\n' "$item"
done
echo one two | cat | { read -r first rest; echo "$first" >&2; }
(cd / && ls -d tmp) > /dev/null
# Left behind, so that the first process reaps it, as it does the program itself.
(sleep 0 &)
