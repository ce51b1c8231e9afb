# Warms this bash, then lets it run its script as `bash main.sh` would. Bash reads this file before its script, as its
# BASH_ENV, so that nothing of it is left on the stack when the script begins.
# Descriptors: 1000 tells to go (`E`: with an environment; `P`: to rehearse a program of the agent's and to stay), 1001 takes what is
# said to the agent.

unset BASH_ENV
printf R >&1001
while true; do
  # Without a word the agent does not need this interpreter.
  IFS= read -r -u 1000 _sandbox || exit 0
  [[ $_sandbox == P ]] || break
  # As below.
  (
    exec 1000<&- 1001>&-
    RANDOM=$SRANDOM SECONDS=0
    [[ -n ${BASH_ENV-} ]]
    unset _sandbox
    . /run/program/main.sh
  )
  printf 'D%d\n' $? >&1001
done
if [[ $_sandbox == E ]]; then
  while IFS= read -r -d '' _sandbox; do
    export "$_sandbox"
  done </run/program/env
fi
# The end of this process is the end of the program; its children must not hold the agent's pipes open.
exec 1000<&- 1001>&-
# Clones of this VM have the same generator state until it is seeded anew, and count seconds since their template was made.
RANDOM=$SRANDOM SECONDS=0
if [[ -n ${BASH_ENV-} ]]; then
  # The program's own, expanded as bash would have done.
  eval "_sandbox=\"$BASH_ENV\""
  [[ -f $_sandbox ]] && . "$_sandbox"
fi
unset _sandbox
