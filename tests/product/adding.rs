//! Packages that are added to an open session, in which everything goes on.

use sandbox_tests::skip::has_registries;
use serde_json::{Value, json};

use crate::harness::Server;
use crate::sessions::{Session, answers, fault, fields, open, tool};

impl Session {
    /// A call that names packages.
    fn with(&mut self, language: &str, packages: &[&str], code: &str) -> Value {
        self.call("execute_code", json!({"language": language, "code": code, "packages": packages}))
    }

    #[track_caller]
    fn check_with(&mut self, packages: &[&str], code: &str, stdout: &str) {
        let outcome = fields(&self.with("python", packages, code));
        assert_eq!((&outcome["stdout"], &outcome["stderr"]), (&json!(stdout), &json!("")), "{packages:?} {code}");
        assert_eq!(outcome.get("state_lost"), None, "{outcome}");
    }

    #[track_caller]
    fn refuse_with(&mut self, packages: &[&str], expected: &str, words: &str) {
        let (code, message) = fault(&self.with("python", packages, "print('ran')"));
        assert!(code == expected && message.contains(words), "{packages:?}: {code}: {message}");
    }
}

#[test]
fn packages_come_into_an_open_session_and_what_is_there_stays() {
    if !has_registries() {
        return;
    }
    let mut session = Session::open();
    let missing = session.run("python", "x = [1]\nimport six");
    assert!(missing["stderr"].as_str().unwrap().contains("No module named 'six'"), "{missing}");
    session.check_with(&["six"], "import six; six.__name__, x", "('six', [1])\n");
    // A set, then the set and one more.
    session.check_with(
        &["six", "tabulate"],
        "import tabulate; x.append(2); tabulate.__name__, six.PY3",
        "('tabulate', True)\n",
    );
    let installed = fields(
        &session.call("install_packages", json!({"language": "python", "packages": ["python-dateutil", "idna"]})),
    );
    let names: Vec<_> = installed["packages"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    for name in ["idna", "python-dateutil", "six", "tabulate"] {
        assert!(names.contains(&json!(name)), "{installed}");
    }
    session.check_with(
        &[],
        "import dateutil.parser, idna; dateutil.parser.parse('2026-01-02').year, x",
        "(2026, [1, 2])\n",
    );
    // What is there is not looked for again.
    session.check_with(&["six>=1", "idna"], "x", "[1, 2]\n");

    // A program beside it, an interpreter that is new, and the shell have them as well.
    let run = session.call(
        "execute_code",
        json!({"language": "python", "code": "import idna, six; print('beside')", "background": true}),
    );
    session.server.send(&tool(1, "get_run", json!({"run_id": fields(&run)["run_id"], "wait_seconds": 50})));
    assert_eq!(fields(&session.server.receive())["stdout"], "beside\n");
    assert_eq!(session.run("shell", "tabulate -h | head -1")["stdout"], "Usage: tabulate [options] [FILE ...]\n");
    session.run("python", "raise SystemExit");
    let lost = session.run("python", "import idna, tabulate, six; six.PY3");
    assert_eq!((&lost["stdout"], &lost["state_lost"]), (&json!("True\n"), &json!(true)), "{lost}");
}

#[test]
fn what_is_imported_is_not_changed() {
    if !has_registries() {
        return;
    }
    let mut session = Session::open_with(&[], json!({"packages": ["numpy<2.3"]}));
    session.check_with(&[], "a = __import__('numpy').arange(3); a.sum().item()", "3\n");
    session.check_with(
        &["pandas"],
        "import pandas; pandas.Series(a).mean().item(), pandas.Series(a).to_numpy() is not a",
        "(1.0, True)\n",
    );
    session.check_with(&[], "import sys; sys.modules['numpy'].__version__[:2], len({m.__file__ for m in [sys.modules['numpy'], pandas.core.common.np]})", "('2.', 1)\n");
    // What it was opened with is in what it has now.
    let id = fields(&session.call("install_packages", json!({"language": "python", "packages": ["numpy"]})))["environment_id"].clone();
    let outcome = fields(
        &session.call("execute_code", json!({"language": "python", "code": "a.sum().item()", "environment_id": id})),
    );
    assert_eq!(outcome["stdout"], "3\n", "{outcome}");
    session.refuse_with(&["numpy>=2.3"], "invalid_input", "packages: the session has numpy 2.2");
    session.refuse_with(&["sandbox-mcp-no-such-package"], "refused", "sandbox-mcp-no-such-package");
    session.refuse_with(&["six @ http://x"], "invalid_input", "packages: ");
    let (code, message) = fault(&session.with("javascript", &["lodash"], "1"));
    assert!(code == "invalid_input" && message.contains("the session has packages of python"), "{message}");
    session.check_with(&[], "a.tolist()", "[0, 1, 2]\n");
}

#[test]
fn packages_of_npm_come_into_an_open_session() {
    if !has_registries() {
        return;
    }
    let mut session = Session::open();
    let missing = session.run("javascript", "const x = 1\nrequire('lodash')");
    assert!(missing["stderr"].as_str().unwrap().contains("Cannot find module 'lodash'"), "{missing}");
    let outcome = fields(&session.with("javascript", &["lodash"], "[require('lodash').chunk([1, 2, 3], 2), x]"));
    assert_eq!(outcome["stdout"], "[ [ [ 1, 2 ], [ 3 ] ], 1 ]\n", "{outcome}");
    let outcome = session.run("javascript", "import lodash from 'lodash'\nlodash.chunk([1, 2], 1).length");
    assert_eq!(outcome["stdout"], "2\n", "{outcome}");
}

#[test]
fn several_add_packages_at_a_time_and_one_gives_up() {
    if !has_registries() {
        return;
    }
    let mut server = Server::start();
    let session = open(&mut server, json!({}));
    let call = |id: u64, packages: &[&str], code: &str| {
        let arguments = json!({"session_id": session, "language": "python", "packages": packages, "code": code});
        tool(id, "execute_code", arguments)
    };
    server.send(&call(1, &["six"], "import six; six.__name__"));
    server.send(&call(2, &["toolz"], "import toolz; toolz.__name__"));
    server.send(&call(3, &["blinker"], "import blinker"));
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}}));
    let answers = answers(&mut server, 2);
    assert_eq!(fields(&answers[&1])["stdout"], "'six'\n");
    assert_eq!(fields(&answers[&2])["stdout"], "'toolz'\n");
    server.send(&call(4, &["six", "toolz", "blinker"], "import six, toolz, blinker; blinker.__name__"));
    let outcome = fields(&server.receive());
    assert_eq!((&outcome["stdout"], outcome.get("state_lost")), (&json!("'blinker'\n"), None), "{outcome}");
}

#[test]
fn a_session_whose_vm_has_booted_takes_no_packages_but_has_its_own() {
    if !has_registries() {
        return;
    }
    let mut session = Session::open_with(&["--no-templates"], json!({"packages": ["six"]}));
    session.check_with(&["six"], "import six; six.PY3", "True\n");
    session.refuse_with(&["six", "idna"], "invalid_input", "was booted");
}
