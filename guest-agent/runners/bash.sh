# Runs one program in this warmed bash, as `bash main.sh` would.
# $1: the program's path. Descriptors: 1000 tells to go, 1001 takes what is said to the agent.

shopt -u sourcepath
# Once through what every program goes through, so that no program is the first.
: "$(printf x)" && [[ a == a ]] && true | true

printf R >&1001
IFS= read -r -u 1000 || exit 0 # The agent does not need this interpreter.

while IFS= read -r -d '' REPLY; do
  export "$REPLY"
done <"${1%/*}/env"

BASH_ARGV0=$1
unset REPLY
set --
# The end of this process is the end of the program; its children must not hold the agent's pipes open.
exec 1000<&- 1001>&-
. "$0"
exit
