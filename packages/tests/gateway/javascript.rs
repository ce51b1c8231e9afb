//! npm and its registry.

use std::path::Path;
use std::process::Output;

use sandbox_packages::Allowlist;
use sandbox_schemas::language::Language;

use crate::tools::{Install, assert_ok, is_there};

async fn install(cache: &Path, allowlist: Allowlist, specifiers: &[&str]) -> (Install, Output) {
    Install::run_new(cache, allowlist, Language::Javascript, specifiers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_are_installed_and_the_next_time_come_from_the_cache() {
    if !is_there(Language::Javascript).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let specifiers = ["lodash@4.17.21", "moment@2.30.1", "@types/node@^22"];
    let (first, output) = install(cache.path(), Allowlist::builtin(), &specifiers).await;
    assert_ok(&output);
    let installed = first.installed("node_modules");
    assert!(["lodash", "moment", "@types"].iter().all(|name| installed.contains(&name.to_string())), "{installed:?}");
    let report = first.client.session.report();
    assert!(report.failures.is_empty() && report.refusals.is_empty(), "{report:?}");
    assert!(report.downloaded_bytes > 1_000_000 && report.cached_bytes == 0, "{report:?}");
    let (second, output) = install(cache.path(), Allowlist::builtin(), &specifiers).await;
    assert_ok(&output);
    let again = second.client.session.report();
    assert!(again.downloaded_bytes == 0 && again.cached_bytes == report.downloaded_bytes, "{again:?}");
    assert_eq!(second.installed("node_modules"), installed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_of_dependencies_is_installed() {
    if !is_there(Language::Javascript).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let (install, output) = install(cache.path(), Allowlist::builtin(), &["express@4", "chalk"]).await;
    assert_ok(&output);
    assert!(install.client.session.report().files.len() > 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependency_that_is_not_allowed_ends_the_install() {
    if !is_there(Language::Javascript).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let list = cache.path().join("list");
    std::fs::write(&list, "is-even\nis-odd").unwrap();
    let allowlist = Allowlist::builtin().with_file(Language::Javascript, &list).unwrap();
    let (install, output) = install(cache.path(), allowlist, &["is-even@1.0.0"]).await;
    assert!(!output.status.success());
    let refusal =
        "is-odd (which is-even requires) requires is-number, which is not on the allowlist of javascript packages";
    assert_eq!(install.client.refusals(), [refusal]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(refusal), "npm shows it: {text}");
    assert!(!install.folder.path().join("node_modules").exists());
}
