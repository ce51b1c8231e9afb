# Warms this bash, then lets it run its script as `bash main.sh` would, or the calls of a session. Bash reads this file before its
# script, as its BASH_ENV, so that nothing of it is left on the stack when the script begins.
# Descriptors: 1000 tells what to run, 1001 takes what is said to the agent; the words are in `guest-agent/src/runner.rs`.

unset BASH_ENV
printf R >&1001
while true; do
  # Without a word the agent does not need this interpreter.
  IFS= read -r -u 1000 _sandbox || exit 0
  [[ $_sandbox == P* ]] || break
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
if [[ $_sandbox == *[Ce]* ]]; then
  _sandbox[4]=$0
  [[ $_sandbox == C* ]] && _sandbox[4]=/run/calls/main.sh
  # Each variable is exported as it is read.
  [[ $_sandbox == *e* ]] && while IFS= read -r -d '' _sandbox[1]; do export "${_sandbox[1]}"; done <"${_sandbox[4]}.env"
  if [[ $_sandbox == C* ]]; then
    RANDOM=$SRANDOM SECONDS=0
    # An interrupt ends the function or the file that it comes in, and then whatever had called that.
    trap '_sandbox[2]=130; trap "((\${#BASH_SOURCE[@]} < 2)) || return 130" DEBUG' INT
    set -T
    printf B >&1001
    # What programs redefine, and the options that they set, must not matter here.
    while builtin true; do
      [[ $_sandbox == *i* ]] && _sandbox[1]=${_sandbox[4]}.stdin || _sandbox[1]=/dev/null
      # An interrupt that came between two calls was the last one's.
      ((_sandbox[2])) && builtin trap - DEBUG
      _sandbox[0]=${_sandbox//[!0-9]/} _sandbox[2]=0
      [[ ${_sandbox[3]-} == *x* ]] && builtin set -x
      . "/run/calls/<call $_sandbox>" <"${_sandbox[1]}" 1000<&- 1001>&-
      # Traced, all this would be the next call's output.
      { _sandbox[1]=$? _sandbox[3]=$-; builtin set +x; } 2>/dev/null
      if ((_sandbox[2])); then
        builtin trap - DEBUG
        _sandbox[1]=${_sandbox[2]}
      fi
      builtin printf 'D%d\n' "${_sandbox[1]}" >&1001
      IFS= builtin read -r -u 1000 '_sandbox[0]' || builtin exit 0
      [[ $_sandbox == *e* ]] && while IFS= builtin read -r -d '' '_sandbox[1]'; do builtin export "${_sandbox[1]}"; done <"${_sandbox[4]}.env"
    done
  fi
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
