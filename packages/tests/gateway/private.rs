//! Registries that are not for everybody, and names that have a registry of their own.

use std::fs;

use sandbox_packages::{Allowlist, CredentialFiles, Gateway, GatewayConfig};
use sandbox_schemas::language::Language;
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Fixture, config};
use crate::registry::Registry;

/// A gateway before one registry for everything, as `change` has it otherwise.
fn fixture(everything: &Registry, change: impl FnOnce(GatewayConfig, &TempDir) -> GatewayConfig) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let config = change(config(folder.path(), &everything.base, Allowlist::builtin()), &folder);
    Fixture { gateway: Gateway::new(config).unwrap(), folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_a_registry_of_its_own_comes_from_nowhere_else() {
    let (everybodys, ours) = (Registry::start(), Registry::start());
    everybodys.project("requests", &[("requests-1.0-py3-none-any.whl", b"theirs")]);
    // Whoever knows of our names may publish a higher version of them there.
    for name in ["acme-tools", "acme-gone"] {
        let file = format!("{}-9.0-py3-none-any.whl", name.replace('-', "_"));
        everybodys.project(name, &[(&file, b"evil")]);
    }
    everybodys.package("@acme/ui", b"evil", json!({}));
    ours.project("acme-tools", &[("acme_tools-1.0-py3-none-any.whl", b"ours")]);
    ours.package("@acme/ui", b"ours", json!({}));
    let fixture = fixture(&everybodys, |config, _| {
        let config = config.with_source(Language::Python, ["Acme_*"], &format!("{}/simple", ours.base)).unwrap();
        config.with_source(Language::Javascript, ["@acme"], &format!("{}/npm/", ours.base)).unwrap()
    });
    let client = fixture.python(&["acme-tools", "requests"]).await;
    let file =
        |name: &str, version: &str| format!("/pypi/files/{name}/{}-{version}-py3-none-any.whl", name.replace('-', "_"));
    assert_eq!(client.get(&file("acme-tools", "1.0")).await.unwrap(), (200, b"ours".to_vec()));
    assert_eq!(client.get(&file("acme-tools", "9.0")).await.unwrap().0, 404);
    assert_eq!(client.get("/pypi/simple/acme-gone/").await.unwrap().0, 404);
    assert_eq!(client.get(&file("requests", "1.0")).await.unwrap(), (200, b"theirs".to_vec()));
    let client = fixture.npm(&["@acme/ui"]).await;
    client.get("/npm/@acme%2fui").await.unwrap();
    assert_eq!(client.get("/npm/@acme/ui/-/ui-1.0.0.tgz").await.unwrap(), (200, b"ours".to_vec()));
    for path in ["/simple/acme-tools/", "/simple/acme-gone/", "/npm/@acme%2fui"] {
        assert!(everybodys.requests(path).is_empty(), "{path}");
    }
    assert!(ours.requests("/simple/requests/").is_empty());
    assert!(client.refusals().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_opened_by_what_the_users_tools_have() {
    let (python, npm) = (Registry::start(), Registry::start());
    python.project("acme", &[("acme-1.0-py3-none-any.whl", b"x")]);
    npm.package("@acme/ui", b"y", json!({}));
    let fixture = fixture(&python, |mut config, folder| {
        let (netrc, npmrc) = (folder.path().join("netrc"), folder.path().join("npmrc"));
        fs::write(&netrc, "machine 127.0.0.1\n  login user\n  password secret\n").unwrap();
        let place = npm.base.strip_prefix("http:").unwrap();
        fs::write(&npmrc, format!("@acme:registry=https://else.example/\n{place}/npm/:_authToken=token\n")).unwrap();
        config.credentials = CredentialFiles { netrc: Some(netrc), npmrc: Some(npmrc) };
        let config = config.with_source(Language::Python, ["acme"], &format!("{}/simple/", python.base)).unwrap();
        config.with_source(Language::Javascript, ["@acme"], &format!("{}/npm/", npm.base)).unwrap()
    });
    let client = fixture.python(&["acme"]).await;
    assert_eq!(client.get("/pypi/files/acme/acme-1.0-py3-none-any.whl").await.unwrap().0, 200);
    let client = fixture.npm(&["@acme/ui"]).await;
    assert_eq!(client.get("/npm/@acme%2fui").await.unwrap().0, 200);
    assert_eq!(client.get("/npm/@acme/ui/-/ui-1.0.0.tgz").await.unwrap().0, 200);
    for path in ["/simple/acme/", "/files/acme-1.0-py3-none-any.whl"] {
        assert_eq!(python.requests(path)[0].authorization.as_deref(), Some("Basic dXNlcjpzZWNyZXQ="), "{path}");
    }
    for path in ["/npm/@acme%2fui", "/files/@acme/ui.tgz"] {
        assert_eq!(npm.requests(path)[0].authorization.as_deref(), Some("Bearer token"), "{path}");
    }
}

#[test]
fn what_a_set_is_made_of_depends_on_where_it_comes_from_and_not_on_what_opens_that() {
    let folder = tempfile::tempdir().unwrap();
    let plain = || config(folder.path(), "https://example.com", Allowlist::builtin());
    let with = |base: &str, names: &[&str]| {
        let mut config = config(folder.path(), base, Allowlist::builtin());
        if !names.is_empty() {
            config = config.with_source(Language::Python, names.iter().copied(), "https://u:p@x.example/").unwrap();
        }
        config
    };
    let text = plain().registry(Language::Python);
    assert_eq!(text, "https://example.com/simple/");
    assert_eq!(with("https://user:secret@example.com", &[]).registry(Language::Python), text);
    let ours = with("https://example.com", &["a", "b-*"]);
    assert_eq!(ours.registry(Language::Python), "https://example.com/simple/ a,b-*=https://x.example/");
    assert_eq!(ours.registry(Language::Javascript), plain().registry(Language::Javascript));
    let error = plain().with_source(Language::Python, ["*"], "https://x.example/").unwrap_err().to_string();
    assert_eq!(error, "\"*\" is no python package's name: it stands for every name");
    let error = plain().with_source(Language::Python, ["a"], "ftp://u:secret@x.example/").unwrap_err().to_string();
    assert!(error.contains("ftp://***@x.example/") && !error.contains("secret"), "{error}");
}
