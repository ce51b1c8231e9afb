//! What packages cost: once, to whoever is the first to ask for them, and ever after.

use std::time::Instant;

use serde_json::{Value, json};

use crate::rows::{Row, Sampler, new_cache};
use crate::subject::{Subject, milliseconds};

pub(crate) const DATA: [&str; 3] = ["numpy", "pandas", "matplotlib"];

pub(crate) const ALL: &[Row] = &[
    Row::time("packages: a run with numpy, pandas, matplotlib", 50, |subject| run(subject, true)),
    Row::time("packages: the same without them", 50, |subject| run(subject, false)),
    Row::time("packages: import pandas in such a run", 50, import),
    Row::time("packages: first use of requests, empty cache", 1, |subject| first_use(subject, "python", &["requests"])),
    Row::time("packages: first use of numpy, pandas, matplotlib", 1, |subject| first_use(subject, "python", &DATA)),
    Row::time("packages: first use of lodash, moment", 1, |subject| {
        first_use(subject, "javascript", &["lodash", "moment"])
    }),
    Row::time("packages: those of data work and one more", 1, one_more),
];

/// A program in a fresh VM from a template: what it prints, and what it takes.
fn run(subject: &Subject, has_packages: bool) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "0"]);
    let mut arguments = json!({"language": "python", "code": "print(6*7)"});
    if has_packages {
        arguments["environment_id"] = server.call("install_packages", &set("python", &DATA))["environment_id"].clone();
    }
    server.call("execute_code", &arguments);
    Box::new(move || {
        let begun = Instant::now();
        server.call("execute_code", &arguments);
        milliseconds(begun.elapsed())
    })
}

/// As the program measures it.
fn import(subject: &Subject) -> Sampler {
    let mut server = subject.start(&["--warm-pool-size", "0"]);
    let environment = server.call("install_packages", &set("python", &DATA))["environment_id"].clone();
    let code = "import time\nbegun = time.perf_counter()\nimport pandas\nprint((time.perf_counter() - begun) * 1000)";
    let arguments = json!({"language": "python", "code": code, "environment_id": environment});
    Box::new(move || server.call("execute_code", &arguments)["stdout"].as_str().unwrap().trim().parse().unwrap())
}

/// With an image and a template, and nothing else.
fn first_use(subject: &Subject, language: &'static str, packages: &'static [&'static str]) -> Sampler {
    let subject = subject.clone();
    Box::new(move || {
        let cache = new_cache();
        let mut server = subject.start(&["--warm-pool-size", "0", "--cache-dir", cache.path().to_str().unwrap()]);
        server.run("shell", "true");
        let begun = Instant::now();
        server.call("install_packages", &set(language, packages));
        milliseconds(begun.elapsed())
    })
}

/// After the set without it was installed: its downloads are there.
fn one_more(subject: &Subject) -> Sampler {
    let subject = subject.clone();
    Box::new(move || {
        let cache = new_cache();
        let mut server = subject.start(&["--warm-pool-size", "0", "--cache-dir", cache.path().to_str().unwrap()]);
        server.call("install_packages", &set("python", &DATA));
        let begun = Instant::now();
        server.call("install_packages", &set("python", &["numpy", "pandas", "matplotlib", "seaborn"]));
        milliseconds(begun.elapsed())
    })
}

pub(crate) fn set(language: &str, packages: &[&str]) -> Value {
    json!({"language": language, "packages": packages})
}
