//! What users expect of a shell script, and of the tools in the image.

use serde_json::json;

use crate::harness::{Case, check as check_case, check_with};

#[track_caller]
fn check(code: &str, exit_code: i64, stdout: &str, stderr: &str) {
    check_case(Case { language: "shell", code, exit_code, stdout, stderr });
}

#[test]
fn a_script_is_a_script() {
    let code = r#"
printf a; echo b | cat
f() { return 3; }; f; echo $? $# "$PWD" "$A"
read -r line; echo "got $line"; cat
( exit 5 ) || echo "sub $?"
values=(1 2 3); echo "${values[-1]} $((2**10))"
trap 'echo trapped' EXIT
echo err > /dev/stderr
missing-command
set -e; false
echo unreachable
"#;
    let expected = "ab\n3 0 /workspace x y\ngot one\ntwo\nsub 5\n3 1024\ntrapped\n";
    let arguments = json!({"language": "shell", "code": code, "stdin": "one\ntwo\n", "env": {"A": "x y"}});
    check_with(arguments, 1, expected, "err\n/run/program/main.sh: line 9: missing-command: command not found\n");
}

#[test]
fn a_first_line_starts_its_interpreter_and_a_mark_of_the_encoding_is_skipped() {
    check("#!/usr/bin/env python3\nimport sys\nprint(6 * 7, len(sys.argv))\nsys.exit(3)", 3, "42 1\n", "");
    check("#!/usr/bin/awk -f\nBEGIN { print 6 * 7 }", 0, "42\n", "");
    check("#!/bin/sh -e\necho $0; false; echo unreachable", 0, "/run/program/main.sh\nunreachable\n", "");
    check("\u{feff}echo marked", 0, "marked\n", "");
    check(
        "#!/no/such/interpreter\n",
        127,
        "",
        "/run/program/main.sh: line 1: /run/program/main: cannot execute: required file not found\n",
    );
}

#[test]
fn the_tools_and_addresses_that_programs_expect_are_there() {
    let code = "for tool in bc file ip nc rg rsync sqlite3 ss xxd zip; do command -v $tool >/dev/null || echo no $tool; done
LC_ALL=de_DE.UTF-8 date -d 2026-11-26 +%A; git init -q . && git commit -q --allow-empty -m x && git log --format=%an
ls -d /sys/class/power_supply; stat -c %a /tmp; fc-list | grep -c DejaVu >/dev/null && echo letters
python3 -c 'import socket; s = socket.create_server((\"::1\", 0), family=socket.AF_INET6); print(socket.create_connection(s.getsockname()[:2]).getpeername()[0])'";
    check(code, 0, "Donnerstag\nsandbox\n/sys/class/power_supply\n1777\nletters\n::1\n", "");
    // That there is no network is not called temporary, and nobody tries again for long.
    let code = "getent hosts pypi.org || echo none
python3 -c 'import socket\ntry: socket.getaddrinfo(\"pypi.org\", 443)\nexcept OSError as error: print(error)'";
    check(code, 0, "none\n[Errno -2] Name or service not known\n", "");
}

#[test]
fn what_only_a_registry_has_is_refused_in_a_sentence() {
    let said = |tool, language, package| {
        format!(
            "{tool}: there is no network here: call execute_code with language \"{language}\" and packages: [{package}] 1\n"
        )
    };
    let code = "say() { \"$@\" 2>&1 | tr '\\n' ' '; echo ${PIPESTATUS[0]}; }
echo '{\"dependencies\": {\"express\": \"^4\"}}' >package.json; echo 'pandas>=2  # data' >requirements.txt
say pip install -q requests; say python3 -m pip install -r requirements.txt; say uv pip install --system numpy; say uvx ruff check
say npm install lodash @scope/x@1 --save-dev; say npm install; say npx -y cowsay hi; say npm create vite@latest app";
    let expected = [
        said("pip", "python", r#""requests""#),
        said("pip", "python", r#""pandas>=2""#),
        said("uv", "python", r#""numpy""#),
        said("uvx", "python", r#""ruff""#),
        said("npm", "javascript", r#""lodash", "@scope/x@1""#),
        said("npm", "javascript", r#""express""#),
        said("npx", "javascript", r#""cowsay""#),
        said("npm", "javascript", r#""create-vite@latest""#),
    ];
    check(code, 0, &expected.concat(), "");
}

#[test]
fn what_needs_no_registry_is_installed() {
    let code = "mkdir -p local/src/mine npm/mine && cd local && touch src/mine/__init__.py
python3 - <<'END'
import zipfile
with zipfile.ZipFile('mine-1-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('mine.py', 'x = 5')
    wheel.writestr('mine-1.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: mine\\nVersion: 1\\n')
    wheel.writestr('mine-1.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    wheel.writestr('mine-1.dist-info/RECORD', '')
END
pip install -q ./mine-1-py3-none-any.whl && python3 -c 'import mine; print(mine.x)'
pip install mine | grep -o 'already satisfied: mine'; pip install --no-index --find-links . other 2>&1 | tail -n 1
cd ../npm && echo '{\"name\": \"mine\", \"version\": \"1.0.0\", \"main\": \"x.js\"}' >mine/package.json && echo 'module.exports = 6' >mine/x.js
npm init -y >init.log && npm install --silent ./mine && node -p 'require(\"mine\")'; npm install mine; npx mine 2>&1 | grep -c 'no network'
npm pkg set scripts.hello='echo hello' && npm run --silent hello";
    let expected =
        "5\nalready satisfied: mine\nERROR: No matching distribution found for other\n6\nup to date\n0\nhello\n";
    check_with(json!({"language": "shell", "code": code, "timeout_seconds": 240}), 0, expected, "");
}

#[test]
fn exit_codes_are_a_shells() {
    check("exit 42", 42, "", "");
    check("kill -9 $$", 137, "", "");
    check("if true; then", 2, "", "syntax error");
    check("(sleep 1000; echo late) & echo started", 0, "started\n", "");
}

#[test]
fn nothing_of_the_runner_shows() {
    let code = r#"
(return 0 2>/dev/null) && echo sourced || echo executed
return 5 2>/dev/null; echo "continued $? $LINENO ${BASH_SOURCE[*]} $# ${BASH_ENV-unset}"
exit() { echo fake; }
set -x; echo traced; set +x
unset -f exit
trap 'echo bye' EXIT
env | cut -d= -f1 | sort | tr '\n' ' '
grep -h SigBlk /proc/self/status | tr -d '\t0'; # Not through a pipe, which the shell itself may hold while this looks.
ls /proc/$$/fd >/tmp/fds; tr '\n' ' ' </tmp/fds
"#;
    let stdout = "executed\ncontinued 2 3 /run/program/main.sh 0 unset\ntraced\nHOME LANG LOGNAME PATH PWD SHELL SHLVL TERM USER _ SigBlk:\n0 1 2 255 bye\n";
    check(code, 0, stdout, "+ echo traced\n+ set +x\n");
}

#[test]
fn odd_names_reach_children_and_bash_env_is_the_programs() {
    let env = json!({"my-var": "1", "UID": "77", "REPLY": "r", "BASH_ENV": "$HOME/e", "GREP_COLOR": "x"});
    let code = "echo $UID $REPLY; env | grep my-var; echo 'echo sourced $1' > ~/e; bash -c 'echo child'";
    check_with(json!({"language": "shell", "code": code, "env": env}), 0, "77 r\nmy-var=1\nsourced\nchild\n", "");
    // It runs as part of the program, under the program's limits.
    let arguments =
        json!({"language": "shell", "code": "echo never", "env": {"BASH_ENV": "$(sleep 100)"}, "timeout_seconds": 1});
    assert_eq!(crate::harness::execute(arguments)["timed_out"], true);
}

#[test]
fn raw_means_shell() {
    check_with(json!({"language": "raw", "code": "echo $BASH_VERSION | cut -c1-2"}), 0, "5.\n", "");
}

#[test]
fn the_promised_tools_are_there() {
    let code = r#"
for tool in python3 python uv pip node npm npx bash git curl jq make patch diff tree file unzip less gawk awk sed grep tar gzip; do
  command -v "$tool" > /dev/null || echo "no $tool"
done
python3 --version | cut -d. -f1,2; node -p 'process.release.lts ? "lts" : "not lts"'
git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --oneline | wc -l
echo '{"a":[1,2]}' | jq -c '.a[1]'; printf 'all:\n\t@echo made\n' > Makefile; make
printf 'one\n' > a; printf 'two\n' > b; diff -u a b > p; patch -s a p && cat a
python3 -c "import zipfile; zipfile.ZipFile('z.zip','w').writestr('f','zipped')" && unzip -p z.zip; echo
file -b Makefile; npm --version | cut -d. -f1; uv --version | cut -d' ' -f1
"#;
    let expected = "Python 3.13\nlts\n1\n2\nmade\ntwo\nzipped\nmakefile script, ASCII text\n11\nuv\n";
    check_with(json!({"language": "shell", "code": code, "timeout_seconds": 120}), 0, expected, "");
}

#[test]
fn the_user_is_an_ordinary_one_without_ways_out() {
    let code = r#"
id -u; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\t'
touch /usr/x 2>/dev/null || echo 'root is read-only'
mount -t tmpfs x /mnt 2>/dev/null || echo 'no mount'
unshare -U true 2>/dev/null || echo 'no namespaces'
kill -9 1 2>/dev/null || echo 'no kill'
cat /dev/vport* 2>/dev/null || echo 'no port'
ls /sys/class/net | tr '\n' ' '
find / -xdev -perm /6000 -type f 2>/dev/null | wc -l
curl -sS -m 5 http://203.0.113.1 2>&1 | cut -c1-9
"#;
    let expected = "1000\nNoNewPrivs:1\nSeccomp:2\nroot is read-only\nno mount\nno namespaces\nno kill\nno port\nlo 0\ncurl: (7)\n";
    check(code, 0, expected, "");
}
