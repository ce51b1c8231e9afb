//! Packages from the real registries: installed once, allowed or refused, imported already, there without a network.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sandbox_tests::skip::has_registries;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Server, command, execute_request, new_cache, request};

/// Addresses on which nobody listens: what is asked of them fails at once.
const NOWHERE: [&str; 4] =
    ["--pypi-index-url", "http://127.0.0.1:9/simple/", "--npm-registry-url", "http://127.0.0.1:9/"];

fn in_cache(cache: &TempDir, arguments: &[&str]) -> Command {
    let mut command = command();
    command.args(["--cache-dir", cache.path().to_str().unwrap()]).args(arguments);
    command
}

fn install_request(id: u32, language: &str, packages: &[&str]) -> Value {
    let arguments = json!({"language": language, "packages": packages});
    request(id, "tools/call", json!({"name": "install_packages", "arguments": arguments}))
}

/// The result of an installation that works.
#[track_caller]
fn install(server: &mut Server, language: &str, packages: &[&str]) -> Value {
    server.send(&install_request(1, language, packages));
    let response = server.receive();
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"]["structuredContent"].clone()
}

/// The code and the text of the error of an installation.
#[track_caller]
fn refused(server: &mut Server, language: &str, packages: &[&str]) -> (String, String) {
    server.send(&install_request(1, language, packages));
    let result = server.receive()["result"].clone();
    assert_eq!(result["isError"], true, "{result}");
    let error = &result["_meta"]["sandbox-mcp/error"];
    (error["code"].as_str().unwrap().into(), error["message"].as_str().unwrap().into())
}

#[track_caller]
fn run(server: &mut Server, arguments: Value) -> Value {
    server.send(&execute_request(2, arguments));
    let response = server.receive();
    assert_eq!(response["result"]["isError"], false, "{response}");
    response["result"]["structuredContent"].clone()
}

fn versions(outcome: &Value) -> Vec<String> {
    let packages = outcome["packages"].as_array().unwrap().iter();
    let text =
        |package: &Value| format!("{}=={}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
    packages.filter(|package| package["requested"] == true).map(text).collect()
}

/// The entries of packages that a cache has, by name.
fn layers(cache: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(cache.join("layers")).into_iter().flatten().flatten().map(|found| found.path());
    found.filter(|path| path.is_dir()).collect()
}

#[test]
fn packages_are_installed_once_imported_already_and_there_without_a_network() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let wanted = ["httpx==0.27.0", "Flask==3.0.3", "requests[socks]==2.32.3"];
    let first = install(&mut server, "python", &wanted);
    assert_eq!(versions(&first), ["flask==3.0.3", "httpx==0.27.0", "requests==2.32.3"]);
    let names: Vec<&str> = first["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"jinja2") && names.contains(&"pysocks"), "what they need is there, extras too: {names:?}");
    assert_eq!((&first["cached"], &first["template"]), (&json!(false), &json!(true)), "{first}");
    assert!(first["downloaded_bytes"].as_u64().unwrap() > 500_000, "{first}");

    let again = install(&mut server, "python", &["requests[socks] == 2.32.3", "flask==3.0.3", "httpx==0.27.0"]);
    assert_eq!((&again["cached"], &again["environment_id"]), (&json!(true), &first["environment_id"]));
    drop(server);

    // Another server, and nobody to ask.
    let mut server = Server::start_as(&mut in_cache(&cache, &NOWHERE));
    let code = "import sys\nprint([name in sys.modules for name in ('flask', 'httpx', 'requests')])\n\
                import flask, httpx, requests, socks, time\nprint(requests.__version__, flask.Flask('x').name)\n\
                print(open('/packages/python/requests/api.py', 'a'))";
    let outcome =
        run(&mut server, json!({"language": "python", "code": code, "environment_id": first["environment_id"]}));
    assert_eq!(outcome["stdout"], "[True, True, True]\n2.32.3 x\n", "{outcome}");
    assert!(outcome["stderr"].as_str().unwrap().contains("Read-only file system"), "{outcome}");
    assert_eq!(outcome["template_hit"], true);
    // The packages' commands and other languages' programs have them as well.
    let code = "flask --version | head -n1; python3 -c 'import requests; print(requests.__version__)'";
    let outcome =
        run(&mut server, json!({"language": "shell", "code": code, "environment_id": first["environment_id"]}));
    assert_eq!(outcome["stdout"], "Python 3.13.5\n2.32.3\n".replace("3.13.5", &python_version(&outcome)), "{outcome}");
    // Without them, nothing is there.
    let outcome = run(&mut server, json!({"language": "python", "code": "import requests"}));
    assert!(outcome["stderr"].as_str().unwrap().contains("No module named 'requests'"), "{outcome}");
    drop(server);
    // Who allows less than before does not have them by the name of their set either.
    let list = cache.path().join("mine.txt");
    fs::write(&list, "flask\nhttpx\n").unwrap();
    let arguments = [&["--pypi-allowlist", list.to_str().unwrap()], &NOWHERE[..]].concat();
    let mut server = Server::start_as(&mut in_cache(&cache, &arguments));
    let known = json!({"language": "python", "code": "1", "environment_id": first["environment_id"]});
    server.send(&execute_request(3, known));
    let response = server.receive();
    let text = response["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("refused: ") && text.contains("was made when more was allowed"), "{response}");
}

/// Debian's point release is not what is tested.
fn python_version(outcome: &Value) -> String {
    let first = outcome["stdout"].as_str().unwrap().lines().next().unwrap_or_default().to_string();
    first.trim_start_matches("Python ").to_string()
}

#[test]
fn javascript_packages_are_there_for_both_kinds_of_modules() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let packages = ["lodash@4.17.21", "moment@2.30.1", "@jridgewell/sourcemap-codec@^1.5.0"];
    let code = "import _ from 'lodash';\nimport { decode } from '@jridgewell/sourcemap-codec';\n\
                console.log(_.chunk([1, 2, 3], 2), require('moment')(0).utc().year(), decode('AAAA').length);";
    let outcome = run(&mut server, json!({"language": "javascript", "code": code, "packages": packages}));
    assert_eq!(outcome["stdout"], "[ [ 1, 2 ], [ 3 ] ] 1970 1\n", "{outcome}");
    let installed = install(&mut server, "javascript", &packages);
    assert_eq!((&installed["cached"], &installed["template"]), (&json!(true), &json!(true)));
    assert!(versions(&installed).contains(&"moment==2.30.1".to_string()), "{installed}");
    let code = "console.log(Object.keys(require.cache).some((path) => path.includes('lodash')))";
    let environment = &installed["environment_id"];
    let outcome = run(&mut server, json!({"language": "javascript", "code": code, "environment_id": environment}));
    assert_eq!(outcome["stdout"], "true\n", "it is loaded already: {outcome}");
}

#[test]
#[ignore = "installs and runs seven tools, which takes many minutes under TCG"]
fn tools_of_npm_have_their_part_for_this_machine_and_run() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let tools = ["typescript", "tsx", "esbuild", "vite", "vitest", "eslint", "prettier"];
    let installed = install(&mut server, "javascript", &tools);
    let code = r#"
echo 'const x: number = 6 * 7; console.log(`${x} by ${process.argv[2]}`)' >a.ts
echo '{"compilerOptions": {"outDir": "out", "types": [], "skipLibCheck": true, "noCheck": true}, "files": ["a.ts"]}' >tsconfig.json
tsc -p . && node out/a.js tsc
tsx a.ts tsx
esbuild a.ts --log-level=error >b.js && node b.js esbuild
echo 'const  y=1' | prettier --parser babel
printf '%s
' "import { expect, test } from 'vitest'" "test('adds', () => expect(1 + 1).toBe(2))" >a.test.ts
vitest run 2>&1 | grep -o 'Tests *1 passed'
echo '<script type="module" src="/a.ts"></script>' >index.html
vite build --logLevel error && ls dist | head -1
echo 'export default [{ rules: { "no-undef": "error" } }]' >eslint.config.mjs
echo 'nothing' >c.js; eslint c.js | grep -o no-undef
"#;
    let arguments = json!({"language": "shell", "code": code, "environment_id": installed["environment_id"],
        "timeout_seconds": 300, "memory_mb": 2048});
    let outcome = run(&mut server, arguments);
    let expected = "42 by tsc\n42 by tsx\n42 by esbuild\nconst y = 1;\nTests  1 passed\nassets\nno-undef\n";
    assert_eq!(outcome["stdout"], expected, "{outcome}\n{installed}");
    // Nothing is said to be missing that is for other machines.
    let skipped = installed["skipped"].as_array().cloned().unwrap_or_default();
    assert!(!skipped.iter().any(|one| one["name"].as_str().unwrap().contains("darwin")), "{installed}");
}

#[test]
fn packages_by_another_name_or_within_others_are_there_for_a_second_server() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    // The first needs packages that lie by other names than their own (`string-width-cjs`).
    let installed = install(&mut server, "javascript", &["glob@10.4.5"]);
    let again = install(&mut server, "javascript", &["glob@10.4.5"]);
    assert_eq!((&again["cached"], &again["environment_id"]), (&json!(true), &installed["environment_id"]));
    drop(server);
    let mut server = Server::start_as(&mut in_cache(&cache, &NOWHERE));
    let code = "require('fs').writeFileSync('a.txt', ''); console.log(require('glob').globSync('*.txt'))";
    let environment = &installed["environment_id"];
    let outcome = run(&mut server, json!({"language": "javascript", "code": code, "environment_id": environment}));
    assert_eq!(outcome["stdout"], "[ 'a.txt' ]\n", "{outcome}");
}

#[test]
fn a_module_that_is_asked_for_is_told_its_project_and_those_are_right() {
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &NOWHERE));
    for (language, name, expected) in [
        ("python", "cv2", "packages: \"cv2\" is a module of opencv-python-headless: name that"),
        (
            "python",
            "jwt",
            "\"jwt\" is a module of pyjwt: name that; if the project of this name is meant, add a version",
        ),
        ("python", "matplotlib.pyplot", "is a module of matplotlib"),
        ("python", "os", "is built into Python"),
        ("javascript", "node:fs", "is built into Node.js"),
        ("javascript", "lodash/fp", "is a module of lodash"),
    ] {
        let (code, message) = refused(&mut server, language, &[name]);
        assert!(code == "invalid_input" && message.contains(expected), "{name}: {code}: {message}");
    }
    drop(server);
    if !has_registries() {
        return;
    }
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let modules = [
        "attr",
        "bs4",
        "dateutil",
        "dns",
        "docx",
        "dotenv",
        "frontmatter",
        "git",
        "jose",
        "jwt",
        "multipart",
        "nacl",
        "PIL",
        "pptx",
        "serial",
        "shapefile",
        "slugify",
        "socks",
        "whois",
        "yaml",
        "Crypto",
        "OpenSSL",
    ];
    let table = include_str!("../../packages/catalogs/python-modules.txt");
    let project = |module: &&str| {
        let line = table.lines().find_map(|line| line.strip_prefix(*module)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{module} is not in the table"))
    };
    let projects: Vec<&str> = modules.iter().map(project).collect();
    let installed = install(&mut server, "python", &projects);
    let imports = modules.map(|module| format!("import {module}\n")).concat();
    let code = format!("{imports}print('all')");
    let environment = &installed["environment_id"];
    let outcome = run(&mut server, json!({"language": "python", "code": code, "environment_id": environment}));
    assert_eq!(outcome["stdout"], "all\n", "{outcome}");
}

#[test]
fn data_work_is_imported_in_milliseconds() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let installed = install(&mut server, "python", &["numpy", "pandas", "matplotlib"]);
    let code = "import time\nbegun = time.perf_counter()\nimport numpy as np, pandas as pd, matplotlib.pyplot as plt\n\
                took = time.perf_counter() - begun\nframe = pd.DataFrame({'a': np.arange(4), 'b': list('xyxy')})\n\
                print(frame.groupby('b')['a'].sum().to_dict())\nplt.plot([1, 2]); plt.savefig('/tmp/plot.png')\n\
                print(open('/tmp/plot.png', 'rb').read(4)[1:], took < 1)";
    let outcome =
        run(&mut server, json!({"language": "python", "code": code, "environment_id": installed["environment_id"]}));
    assert_eq!(outcome["stdout"], "{'x': 2, 'y': 4}\nb'PNG' True\n", "{outcome}");
    // Clones draw numbers of their own, also those of packages.
    for number in ["numpy.random.randint(2**62)", "numpy.random.default_rng().integers(2**62)"] {
        let code = format!("import numpy; print({number})");
        let draw = |server: &mut Server| {
            let environment = &installed["environment_id"];
            run(server, json!({"language": "python", "code": code, "environment_id": environment}))["stdout"].clone()
        };
        assert_ne!(draw(&mut server), draw(&mut server), "{number}");
    }
}

#[test]
fn what_is_made_for_graphics_processors_is_refused_or_left_out() {
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &NOWHERE));
    let (code, message) = refused(&mut server, "python", &["torch"]);
    assert!(code == "refused" && message.contains("pypi_sources"), "{code}: {message}");
    let (code, message) = refused(&mut server, "python", &["tensorflow"]);
    assert!(code == "refused" && message.contains("tensorflow-cpu"), "{code}: {message}");
    drop(server);
    if !has_registries() {
        return;
    }
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let (code, message) = refused(&mut server, "python", &["sentence-transformers"]);
    assert!(
        code == "refused" && message.starts_with("sentence-transformers requires torch, which on"),
        "{code}: {message}"
    );
    let installed = install(&mut server, "python", &["xgboost"]);
    let skipped = installed["skipped"].as_array().unwrap();
    assert!(skipped.len() == 1 && skipped[0]["name"].as_str().unwrap().starts_with("nvidia-nccl"), "{installed}");
    let code = "import numpy as np, xgboost\nx = np.arange(20.0).reshape(-1, 1)\ndata = xgboost.DMatrix(x, label=x[:, 0] > 9)\n\
                model = xgboost.train({}, data, 30)\nprint(model.predict(xgboost.DMatrix([[1.0], [18.0]])).round().tolist())";
    let outcome =
        run(&mut server, json!({"language": "python", "code": code, "environment_id": installed["environment_id"]}));
    assert_eq!(outcome["stdout"], "[0.0, 1.0]\n", "{outcome}");
}

#[test]
fn what_is_not_allowed_is_refused_by_name_with_who_needs_it() {
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &NOWHERE));
    let (code, message) = refused(&mut server, "python", &["reqeusts"]);
    assert!(code == "refused" && message.contains("reqeusts") && message.contains("requests"), "{code}: {message}");
    let (code, message) = refused(&mut server, "javascript", &["loadsh"]);
    assert!(code == "refused" && message.contains("lodash"), "{code}: {message}");
    for bad in [
        "git+https://example.com/x",
        "--index-url=http://x",
        "./here",
        "requests\n-r x",
        "requ\u{435}sts",
        "a @ http://x",
    ] {
        let (code, message) = refused(&mut server, "python", &["requests", bad]);
        assert!(code == "invalid_input" && message.starts_with("packages: "), "{bad:?}: {code}: {message}");
    }
    let many: Vec<String> = (0..51).map(|number| format!("p{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(refused(&mut server, "python", &many).0, "invalid_input");
    server.send(&execute_request(3, json!({"language": "shell", "code": "true", "packages": ["jq"]})));
    let response = server.receive();
    assert!(response["result"]["content"][0]["text"].as_str().unwrap().contains("not for shell"), "{response}");
    let unknown = json!({"language": "python", "code": "1", "environment_id": "python-0123456789abcdef"});
    server.send(&execute_request(4, unknown));
    let response = server.receive();
    let text = response["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("invalid_input: environment_id: there is no environment"), "{response}");
    assert!(layers(cache.path()).is_empty());
}

#[test]
fn a_dependency_that_is_not_allowed_is_refused_and_nothing_is_kept() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let list = cache.path().join("mine.txt");
    fs::write(&list, "# Ours.\nflask\nwerkzeug\n").unwrap();
    let mut server = Server::start_as(&mut in_cache(&cache, &["--pypi-allowlist", list.to_str().unwrap()]));
    let (code, message) = refused(&mut server, "python", &["flask==3.0.3"]);
    assert_eq!(code, "refused", "{message}");
    assert!(message.contains("flask requires ") && message.contains("which is not on the allowlist"), "{message}");
    // What was written has a reason in the end: nothing but source.
    drop(server);
    let mut server = Server::start_as(&mut in_cache(&cache, &["--no-package-allowlist"]));
    let (code, message) = refused(&mut server, "python", &["docopt==0.6.2"]);
    assert_eq!(code, "install_failed", "{message}");
    assert!(message.starts_with("docopt==0.6.2 has no wheel"), "{message}");
    let (code, message) = refused(&mut server, "javascript", &["lodash@999.0.0"]);
    assert_eq!(code, "install_failed", "{message}");
    assert!(message.contains("999.0.0"), "{message}");
    assert!(layers(cache.path()).is_empty(), "{:?}", layers(cache.path()));
}

#[test]
fn an_installation_is_shared_reported_and_outlives_its_last_waiter() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    // The VM that builds the template goes first.
    run(&mut server, json!({"language": "shell", "code": "true"}));
    server.wait_for_machines(0, Duration::from_secs(10));
    // One that nobody waits for any more goes on, so that who asks again finds it; the second such one ends.
    let cancel = |id: u32| json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}});
    server.send(&install_request(1, "python", &["idna==3.10"]));
    server.wait_for_machines(1, Duration::from_secs(60));
    server.send(&cancel(1));
    server.send(&install_request(2, "python", &["certifi"]));
    server.wait_for_machines(2, Duration::from_secs(60));
    server.send(&cancel(2));
    let installed = install(&mut server, "python", &["idna==3.10"]);
    assert_eq!((versions(&installed), layers(cache.path()).len()), (vec!["idna==3.10".to_owned()], 1), "{installed}");
    server.wait_for_machines(0, Duration::from_secs(60));
    fs::remove_dir_all(&layers(cache.path())[0]).unwrap();

    // Two share one; the cancel of one is not the other's.
    let arguments = json!({"language": "python", "packages": ["click==8.1.7"]});
    let meta = json!({"progressToken": "p"});
    let shown = json!({"name": "install_packages", "arguments": arguments, "_meta": meta});
    server.send(&request(2, "tools/call", shown));
    server.send(&install_request(3, "python", &["click==8.1.7"]));
    server.wait_for_machines(1, Duration::from_secs(60));
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 3}}));
    let mut progress = String::new();
    let response = loop {
        let message = server.receive();
        assert!(server.virtual_machines().len() <= 1);
        match message["method"].as_str() {
            Some("notifications/progress") => progress.push_str(message["params"]["message"].as_str().unwrap()),
            _ => break message,
        }
    };
    assert_eq!((&response["id"], &response["result"]["isError"]), (&json!(2), &json!(false)), "{response}");
    assert!(progress.contains("click==8.1.7"), "{progress}");
    assert_eq!(layers(cache.path()).len(), 1);

    // A layer that is damaged is not used, but installed again.
    let image = layers(cache.path())[0].join("layer.erofs");
    drop(server);
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(b"damage", 5000).unwrap();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let code = "import click; print(click.__name__)";
    let outcome = run(&mut server, json!({"language": "python", "code": code, "packages": ["click==8.1.7"]}));
    assert_eq!(outcome["stdout"], "click\n", "{outcome}");
}

/// What the manifest of an environment says.
#[track_caller]
fn manifest(cache: &TempDir, installed: &Value) -> Value {
    let path = cache.path().join("layers").join(installed["environment_id"].as_str().unwrap()).join("manifest.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_is_added_to_a_set_is_all_that_is_installed_and_imported() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let first = install(&mut server, "python", &["idna>=3", "markupsafe==3.0.2"]);
    let more = install(&mut server, "python", &["idna>=3", "jinja2==3.1.6", "markupsafe==3.0.2"]);
    assert_eq!(manifest(&cache, &more)["added_to"]["key"], manifest(&cache, &first)["key"]);
    assert_eq!(versions(&more)[1..], ["jinja2==3.1.6", "markupsafe==3.0.2"], "{more}");
    assert_eq!((&more["cached"], &more["template"]), (&json!(false), &json!(true)));
    // Imported already, found by every interpreter, without a network, and when what they were added to is gone.
    let code = "import sys\nprint([name in sys.modules for name in ('idna', 'jinja2', 'markupsafe')])\n\
                import subprocess, jinja2\nprint(jinja2.Template('{{ 6 * 7 }}').render())\n\
                print(subprocess.run(['python3', '-c', 'import idna, jinja2; print(jinja2.__file__)'], \
                capture_output=True, text=True).stdout)";
    let expected = "[True, True, True]\n42\n/packages-2/python/jinja2/__init__.py\n\n";
    let arguments = json!({"language": "python", "code": code, "environment_id": more["environment_id"]});
    assert_eq!(run(&mut server, arguments.clone())["stdout"], expected);
    drop(server);
    fs::remove_dir_all(cache.path().join("layers").join(first["environment_id"].as_str().unwrap())).unwrap();
    let templates = fs::read_dir(cache.path().join("templates")).unwrap().flatten().map(|found| found.path());
    let of_packages =
        |path: &PathBuf| path.is_dir() && path.file_name().unwrap().to_str().unwrap().starts_with("python-");
    templates.filter(of_packages).for_each(|path| fs::remove_dir_all(path).unwrap());
    let mut server = Server::start_as(&mut in_cache(&cache, &NOWHERE));
    let outcome = run(&mut server, arguments);
    assert_eq!((&outcome["stdout"], &outcome["template_hit"]), (&json!(expected), &json!(true)), "{outcome}");
}

#[test]
fn what_is_added_is_found_by_what_has_looked_for_it_in_vain() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    // Each asks for the other when it is imported, and settles what it does without.
    for (first, added, code, expected) in [
        (
            &["beautifulsoup4", "tabulate"][..],
            "lxml",
            "from bs4 import BeautifulSoup; print(BeautifulSoup('<p>x', 'lxml').p.text)",
            "x\n",
        ),
        (
            &["pandas"],
            "pyarrow",
            "import pandas as pd; pd.DataFrame({'a': [1, 2]}).to_parquet('/tmp/a.parquet'); \
             print(pd.read_parquet('/tmp/a.parquet').a.sum())",
            "3\n",
        ),
        // By the names of distributions.
        (&["importlib-resources", "rich"], "ipython", "import IPython, rich; print(rich.__name__)", "rich\n"),
    ] {
        let base = install(&mut server, "python", first);
        let packages = [first, &[added]].concat();
        let more = install(&mut server, "python", &packages);
        assert_eq!(manifest(&cache, &more)["added_to"]["key"], manifest(&cache, &base)["key"], "{packages:?}");
        let environment = &more["environment_id"];
        let outcome = run(&mut server, json!({"language": "python", "code": code, "environment_id": environment}));
        assert_eq!((&outcome["stdout"], &outcome["template_hit"]), (&json!(expected), &json!(true)), "{outcome}");
        let code =
            format!("import sys; print('{}' in sys.modules)", if added == "ipython" { "IPython" } else { added });
        let outcome = run(&mut server, json!({"language": "python", "code": code, "environment_id": environment}));
        assert_eq!(outcome["stdout"], "True\n", "{outcome}");
    }
}

#[test]
fn a_set_that_grows_again_and_again_has_a_part_for_each_step() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let names = ["idna", "six", "tabulate", "click"];
    let mut before: Option<Value> = None;
    for count in 1..=names.len() {
        let installed = install(&mut server, "python", &names[..count]);
        let manifest = manifest(&cache, &installed);
        assert_eq!((&manifest["parts"], &installed["template"]), (&json!(count), &json!(true)), "{manifest}");
        assert_eq!(manifest["added_to"].get("key"), before.as_ref().map(|before| &before["key"]));
        let code = format!(
            "import shutil, sys; print([name in sys.modules for name in {:?}], shutil.which('tabulate'))",
            &names[..count]
        );
        let environment = &installed["environment_id"];
        let outcome = run(&mut server, json!({"language": "python", "code": code, "environment_id": environment}));
        let command = if count < 3 { "None" } else { "/run/commands/tabulate" };
        assert_eq!(outcome["stdout"], format!("[{}] {command}\n", vec!["True"; count].join(", ")), "{outcome}");
        before = Some(manifest);
    }
    // What is in no other part runs: a command, in an interpreter of its own, and what that imports.
    let installed = install(&mut server, "python", &names);
    let arguments = json!({"language": "shell", "code": "printf '1 2\\n' | tabulate; python3 -c 'import click, idna, six'",
        "environment_id": installed["environment_id"]});
    let outcome = run(&mut server, arguments);
    assert_eq!((&outcome["stdout"], &outcome["exit_code"]), (&json!("-  -\n1  2\n-  -\n"), &json!(0)), "{outcome}");
}

#[test]
fn nobodys_versions_depend_on_what_others_have_asked_for() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let pinned = install(&mut server, "python", &["click==8.1.3"]);
    assert_eq!(versions(&pinned), ["click==8.1.3"]);
    let beside = install(&mut server, "python", &["click", "tabulate"]);
    let alone = install(&mut server, "python", &["click"]);
    assert_ne!(versions(&alone), versions(&pinned));
    assert_eq!(versions(&beside)[0], versions(&alone)[0], "{beside}");
    assert!(manifest(&cache, &beside).get("added_to").is_none());
}

#[test]
fn what_is_not_imported_is_told_with_the_reason() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    // It needs a library that is not there, so that its import fails; what is beside it is imported all the same.
    let installed = install(&mut server, "python", &["psycopg", "six"]);
    assert_eq!((&installed["template"], &installed["not_imported"][0]["name"]), (&json!(true), &json!("psycopg")));
    let reason = installed["not_imported"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("ImportError: no pq wrapper available"), "{installed}");
    assert_eq!(installed["not_imported"].as_array().unwrap().len(), 1, "{installed}");
    let code = "import sys; print([name in sys.modules for name in ('psycopg', 'six')])";
    let arguments = json!({"language": "python", "code": code, "environment_id": installed["environment_id"]});
    let outcome = run(&mut server, arguments.clone());
    assert_eq!(outcome["stdout"], "[False, True]\n", "{outcome}");
    assert_eq!(outcome["not_imported"], installed["not_imported"]);
    drop(server);
    // Another server, which finds the template.
    let mut server = Server::start_as(&mut in_cache(&cache, &NOWHERE));
    assert_eq!(run(&mut server, arguments)["not_imported"], installed["not_imported"]);
    let outcome = run(&mut server, json!({"language": "python", "code": "1"}));
    assert!(outcome.get("not_imported").is_none(), "{outcome}");
}

#[test]
fn what_cannot_be_added_to_a_set_is_installed_anew() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &[]));
    let base = install(&mut server, "python", &["markupsafe==3.0.2", "zope.event==5.0"]);
    assert!(manifest(&cache, &base).get("added_to").is_none());
    for (packages, why) in [
        (["markupsafe==3.0.3", "zope.event==5.0", "idna==3.10"], "another version is asked for"),
        (["markupsafe", "werkzeug==3.1.3", "zope.event>=6"], "a newer version is needed"),
        (["markupsafe", "zope.event", "zope.deprecation==5.0"], "both have files in one directory"),
    ] {
        let installed = install(&mut server, "python", &packages);
        assert!(manifest(&cache, &installed).get("added_to").is_none(), "{why}: {installed}");
        let code = "import markupsafe, zope.event; print(zope.event.subscribers)";
        let environment = &installed["environment_id"];
        let outcome = run(&mut server, json!({"language": "python", "code": code, "environment_id": environment}));
        assert_eq!(outcome["stdout"], "[]\n", "{why}: {outcome}");
    }
}

#[test]
fn a_set_that_was_used_waits_in_the_pool() {
    if !has_registries() {
        return;
    }
    let cache = new_cache();
    let mut server = Server::start_as(&mut in_cache(&cache, &["--warm-pool-size", "1"]));
    let arguments =
        json!({"language": "python", "code": "import idna; print(idna.__name__)", "packages": ["idna==3.10"]});
    run(&mut server, arguments.clone());
    server.wait_for_pool(2);
    let outcome = run(&mut server, arguments);
    assert_eq!((&outcome["stdout"], &outcome["warm_pool_hit"]), (&json!("idna\n"), &json!(true)), "{outcome}");
    assert_eq!(outcome["timing"]["setup_ms"], 0.0);
}
