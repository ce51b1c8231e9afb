# ==== a command that is not there
no-such-command --x
echo "$?"
# ==== a syntax error
if true; then
  echo x
fi )
# ==== an unfinished quote
echo "never
# ==== an error ends it
set -e
echo before
false
echo never
# ==== a variable that is not set
set -u
echo "$nothing"
echo never
# ==== a pipe that fails
set -o pipefail
false | true
echo "$?" "${PIPESTATUS[@]}"
# ==== traces
set -x
f() { local x=1; echo "$x $1"; }
f a
[[ $x == 1 ]] || true
# ==== who calls
f() { echo "${FUNCNAME[@]} ${BASH_LINENO[@]} ${BASH_SOURCE[@]} $LINENO"; caller 0; caller; }
g() { f; }
g
echo "${BASH_SOURCE[@]} ${FUNCNAME[*]-} $LINENO ${#BASH_LINENO[@]}"
# ==== arguments and options
echo "$0" "$#" "$*" "$-" "$BASHOPTS" "$SHELLOPTS" "${BASH_VERSINFO[0]}" "$SHLVL" "$IFS"
shopt -s
# ==== traps
trap 'echo "exit $?"' EXIT
trap 'echo "error in $BASH_COMMAND at $LINENO"' ERR
trap 'echo hup' HUP
kill -HUP $$
false
exit 3
# ==== trap of every command
trap 'echo "+ $BASH_COMMAND"' DEBUG
x=1
echo "$x"
# ==== return at the top
echo before
return 4
echo after
# ==== functions and variables that are there
declare -F
compgen -v | grep -v -E '^(BASH|PPID|RANDOM|SECONDS|EPOCH|SRANDOM|_|HIST|SHLVL|OLDPWD|PIPESTATUS|LINES|COLUMNS)' | sort
alias
trap -p
# ==== a child's exit by a signal
sh -c 'kill -TERM $$'
echo "$?"
bash -c 'kill -SEGV $$'
echo "$?"
# ==== jobs
sleep 0.1 &
wait $!
echo "$?" "$(jobs)"
(exit 5) & wait -n; echo "$?"
# ==== here documents and arrays
cat <<EOF
a $((6 * 7)) $(echo b)
EOF
declare -A map=([b]=2 [a]=1); declare -a list=(x 'y z'); list+=(w)
echo "${map[a]} ${#list[@]} ${list[@]:1} ${list[-1]}"; declare -p list
# ==== expansions
x=some.file.txt; echo "${x%.*} ${x##*.} ${x/some/any} ${x^^} ${#x} ${x:2:3} ${y:-unset} {1..3} $((x=5, x**2)) ${!x@}"
echo ${z?must be set}
# ==== arithmetic that fails
echo $((1 / 0))
echo after
# ==== reading its input
read -r line; echo "$? '$line'"
cat; echo end
# ==== descriptors
exec 3>out.txt; echo three >&3; exec 3>&-; cat out.txt; ls /proc/self/fd | head -4; echo bad >&9
# ==== its own text
wc -l <"$0"; basename "$0"; [ -r "$0" ] && echo readable
# ==== what an exec does
exec echo "in its place"
# ==== a background process that holds on
(sleep 0.2; echo late) &
echo now
wait
# ==== the directory and umask
pwd; umask; ulimit -c; ulimit -s; echo ~ "$HOME" "$PATH" "$PWD" "${OLDPWD-none}" "$USER" "$LANG"
# ==== a coprocess and substitution of processes
diff <(echo a) <(echo b); coproc cat; echo x >&"${COPROC[1]}"; read -r y <&"${COPROC[0]}"; echo "$y"
# ==== sourcing
echo 'v=1; return 7; v=2' >part.sh; . ./part.sh; echo "$? $v"; . ./nothing.sh
# ==== eval that is wrong
eval 'echo a; ('
echo "after $?"
