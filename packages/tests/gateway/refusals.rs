//! What may not come, and who is told to be behind it.

use sandbox_packages::{Allowlist, Session};
use sandbox_schemas::language::Language;
use serde_json::json;

use crate::harness::{Client, Fixture, recorder};
use crate::registry::{Registry, wheel};

fn allowing(names: &[&str]) -> Allowlist {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list");
    std::fs::write(&list, names.join("\n")).unwrap();
    let both = Allowlist::off().with_file(Language::Python, &list).unwrap();
    both.with_file(Language::Javascript, &list).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_asked_of_no_registry() {
    let registry = Registry::start();
    registry.project("evil", &[("evil-1.0-py3-none-any.whl", b"x")]);
    let fixture = Fixture::before(&registry.base, allowing(&["devil"]));
    let client = fixture.python(&["devil"]).await;
    for path in [
        "/pypi/simple/evil/",
        "/pypi/simple/EVIL/",
        "/pypi/files/evil/evil-1.0-py3-none-any.whl",
        "/pypi/files/evil/evil-1.0-py3-none-any.whl.metadata",
    ] {
        let (status, text) = client.text(path).await;
        assert_eq!(status, 451, "{path}");
        assert_eq!(text, "evil is not on the allowlist of python packages; is devil meant?");
    }
    let client = fixture.npm(&["devil"]).await;
    for path in ["/npm/evil", "/npm/evil/-/evil-1.0.0.tgz", "/npm/@evil%2fevil", "/npm/Devil"] {
        let (status, text) = client.text(path).await;
        assert!(status == 451 && text.starts_with("{\"error\":\""), "{status} {text}");
    }
    assert_eq!(registry.count(), 0);
    assert_eq!(client.refusals().len(), 3, "each once: {:?}", client.refusals());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_requirement_behind_a_refusal_is_named() {
    let registry = Registry::start();
    for (name, needs) in [("app", &["Middle>=1", "plain; extra == 'x'"][..]), ("middle", &["evil_package<2"])] {
        registry.project(name, &[(&format!("{name}-1.0-py3-none-any.whl"), &wheel(name, "1.0", needs))]);
    }
    let fixture = Fixture::before(&registry.base, allowing(&["app", "middle"]));
    let (observer, events) = recorder();
    let requirements = sandbox_packages::parse(Language::Python, &["app".into()]).unwrap();
    let client =
        Client::of(Session::new(fixture.gateway.clone(), Language::Python, requirements, Some(observer))).await;
    for name in ["app", "middle"] {
        client.get(&format!("/pypi/simple/{name}/")).await.unwrap();
        client.get(&format!("/pypi/files/{name}/{name}-1.0-py3-none-any.whl.metadata")).await.unwrap();
    }
    let (status, text) = client.text("/pypi/simple/evil-package/").await;
    assert_eq!(status, 451);
    assert_eq!(
        text,
        "middle (which app requires) requires evil-package, which is not on the allowlist of python packages"
    );
    client.text("/pypi/simple/plain/").await;
    assert_eq!(
        client.refusals(),
        [text, "app requires plain, which is not on the allowlist of python packages".into()]
    );
    let events = events.lock().unwrap();
    assert!(events[0].contains("Looked") && events.iter().any(|event| event.contains("Refused")), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn npm_goes_on_without_what_is_optional() {
    let registry = Registry::start();
    let needs = json!({ "dependencies": { "alias": "npm:evil@^1" }, "optionalDependencies": { "maybe": "1" } });
    registry.package("app", b"x", needs);
    let fixture = Fixture::before(&registry.base, allowing(&["app"]));
    let client = fixture.npm(&["app"]).await;
    client.get("/npm/app").await.unwrap();
    assert_eq!(client.get("/npm/evil").await.unwrap().0, 451);
    assert_eq!(client.get("/npm/maybe").await.unwrap().0, 451);
    let refusals = client.session.report().refusals;
    let found: Vec<_> = refusals.iter().map(|one| (&*one.refused.name, &*one.wanted_by[0], one.is_optional)).collect();
    assert_eq!(found, [("evil", "app", false), ("maybe", "app", true)]);
    assert_eq!(client.get("/npm/app/-/app-1.0.0.tgz").await.unwrap(), (200, b"x".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_without_wheels_says_so() {
    let registry = Registry::start();
    registry.project("source", &[("source-1.0.tar.gz", b"x")]);
    registry.project("windows", &[("windows-1.0-cp313-cp313-win_amd64.whl", b"x")]);
    registry.project("partly", &[("partly-2.0-py3-none-any.whl", b"x"), ("partly-1.0.tar.gz", b"x")]);
    let fixture = Fixture::before(&registry.base, Allowlist::off());
    let unavailable = async |specifier: &str| {
        let client = fixture.python(&[specifier]).await;
        let (status, text) = client.text(&format!("/pypi/simple/{}/", specifier.split('=').next().unwrap())).await;
        assert!(status == 200 && !text.contains(".tar.gz") && !text.contains("win_amd64"), "{text}");
        client.session.report().unavailable.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let source = "has no wheel, only source that would have to be built";
    assert_eq!(unavailable("source").await, [format!("source {source}")]);
    assert_eq!(unavailable("partly==1.0").await, [format!("partly==1.0 {source}")]);
    assert_eq!(unavailable("partly==2.0").await, Vec::<String>::new());
    assert_eq!(unavailable("partly==3.0").await, Vec::<String>::new(), "the installer says that there is none");
    let windows = "windows==1.0 has wheels, but none for this Python on x86-64 Linux";
    assert_eq!(unavailable("windows==1.0").await, [windows]);
}
