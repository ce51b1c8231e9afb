//! uv and PyPI.

use std::path::Path;
use std::process::Output;

use sandbox_packages::Allowlist;
use sandbox_schemas::language::Language;

use crate::tools::{Install, assert_ok, is_there};

async fn install(cache: &Path, allowlist: Allowlist, specifiers: &[&str]) -> (Install, Output) {
    Install::run_new(cache, allowlist, Language::Python, specifiers).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_pinned_packages_are_installed_and_the_next_time_come_from_the_cache() {
    if !is_there(Language::Python).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let specifiers = ["requests==2.32.3", "flask==3.0.3", "httpx==0.27.0"];
    let (first, output) = install(cache.path(), Allowlist::builtin(), &specifiers).await;
    assert_ok(&output);
    let installed = first.installed("site");
    for name in ["requests-2.32.3.dist-info", "flask-3.0.3.dist-info", "httpx-0.27.0.dist-info"] {
        assert!(installed.iter().any(|found| found == name), "{installed:?}");
    }
    let report = first.client.session.report();
    let is_empty = report.refusals.is_empty() && report.unavailable.is_empty() && report.failures.is_empty();
    assert!(is_empty && report.downloaded_bytes > 500_000 && report.cached_bytes == 0, "{report:?}");
    let (second, output) = install(cache.path(), Allowlist::builtin(), &specifiers).await;
    assert_ok(&output);
    assert_eq!(second.installed("site"), installed);
    let again = second.client.session.report();
    assert!(again.downloaded_bytes == 0 && again.files.iter().all(|file| file.is_cached), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_packages_with_compiled_code_are_installed() {
    if !is_there(Language::Python).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let (install, output) = install(cache.path(), Allowlist::builtin(), &["numpy", "pandas", "matplotlib"]).await;
    assert_ok(&output);
    let files = install.client.session.report().files;
    let numpy = files.iter().find(|file| file.package == "numpy").unwrap();
    assert!(numpy.file.contains("cp313") && numpy.file.contains("x86_64"), "{numpy:?}");
    assert!(install.installed("site").iter().any(|name| name == "matplotlib"));
}

#[tokio::test(flavor = "multi_thread")]
async fn extras_bring_what_they_stand_for() {
    if !is_there(Language::Python).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let (install, output) = install(cache.path(), Allowlist::builtin(), &["requests[socks]==2.32.3"]).await;
    assert_ok(&output);
    assert!(install.installed("site").iter().any(|name| name == "socks.py"), "{:?}", install.installed("site"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependency_that_is_not_allowed_ends_the_install() {
    if !is_there(Language::Python).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let list = cache.path().join("list");
    std::fs::write(&list, "flask\nwerkzeug\njinja2\nitsdangerous\nclick\nmarkupsafe\n").unwrap();
    let allowlist = Allowlist::builtin().with_file(Language::Python, &list).unwrap();
    // Any version of Flask would do, and the old ones did without this: uv must not look for one of them.
    let (install, output) = install(cache.path(), allowlist, &["flask"]).await;
    assert!(!output.status.success());
    assert_eq!(install.client.refusals(), ["flask requires blinker, which is not on the allowlist of python packages"]);
    assert!(!install.installed("site").iter().any(|name| name.contains("flask")), "{:?}", install.installed("site"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_has_only_source_says_so() {
    if !is_there(Language::Python).await {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let (install, output) = install(cache.path(), Allowlist::builtin(), &["docopt==0.6.2"]).await;
    assert!(!output.status.success());
    let unavailable: Vec<_> = install.client.session.report().unavailable.iter().map(ToString::to_string).collect();
    assert_eq!(unavailable, ["docopt==0.6.2 has no wheel, only source that would have to be built"]);
}
