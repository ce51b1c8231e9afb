//! What is made for graphics processors: gigabytes that no VM has a use for.

use sandbox_packages::Allowlist;
use sandbox_schemas::language::Language;

use crate::harness::Fixture;
use crate::registry::{Registry, wheel};

const FILE: &str = "xgboost-1.0-py3-none-any.whl";

fn registry() -> Registry {
    let registry = Registry::start();
    let needs = ["numpy", "nvidia-nccl-cu12; platform_system == 'Linux'", "nvidia-cudnn-cu12; extra == 'gpu'"];
    registry.project("xgboost", &[(FILE, &wheel("xgboost", "1.0", &needs))]);
    registry.project("torch", &[("torch-1.0-py3-none-any.whl", b"x")]);
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_use_their_libraries_does_without() {
    let registry = registry();
    let fixture = Fixture::before(&registry.base, Allowlist::builtin());
    let client = fixture.python(&["xgboost"]).await;
    let (status, metadata) = client.text(&format!("/pypi/files/xgboost/{FILE}.metadata")).await;
    assert_eq!(status, 200);
    assert!(metadata.contains("numpy") && metadata.contains("extra") && !metadata.contains("nccl"), "{metadata}");
    let report = client.session.report();
    let refusals: Vec<_> = report.refusals.iter().map(|one| (one.to_string(), one.is_optional)).collect();
    let told = "xgboost requires nvidia-nccl-cu12, which is made for graphics processors, which no VM has";
    assert_eq!(refusals, [(told.to_owned(), true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_allows_them_gets_them() {
    let registry = registry();
    let both = Allowlist::builtin().with_names(Language::Python, ["nvidia-nccl-cu12", "torch"]).unwrap();
    for allowlist in [both, Allowlist::off()] {
        let fixture = Fixture::before(&registry.base, allowlist);
        let client = fixture.python(&["xgboost"]).await;
        let (_, metadata) = client.text(&format!("/pypi/files/xgboost/{FILE}.metadata")).await;
        assert!(metadata.contains("nccl"), "{metadata}");
        assert_eq!(client.get("/pypi/simple/torch/").await.unwrap().0, 200);
        assert!(client.refusals().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_for_them_are_refused_with_what_to_do_instead() {
    let registry = registry();
    let fixture = Fixture::before(&registry.base, Allowlist::builtin());
    let client = fixture.python(&["torch", "tensorflow"]).await;
    let (status, text) = client.text("/pypi/simple/torch/").await;
    assert_eq!(status, 451);
    assert!(
        text.starts_with("torch on PyPI is made for graphics processors") && text.contains("pypi_sources"),
        "{text}"
    );
    let (_, text) = client.text("/pypi/simple/tensorflow/").await;
    assert!(text.ends_with(": tensorflow-cpu has the same modules without"), "{text}");
    assert_eq!(registry.count(), 0);
    // An index of its own has others.
    let own = fixture_with_source(&registry);
    let client = own.python(&["torch"]).await;
    assert_eq!(client.get("/pypi/simple/torch/").await.unwrap().0, 200);
}

fn fixture_with_source(registry: &Registry) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let config = crate::harness::config(folder.path(), "http://127.0.0.1:9", Allowlist::builtin());
    let config = config.with_source(Language::Python, ["torch"], &format!("{}/simple/", registry.base)).unwrap();
    Fixture { gateway: sandbox_packages::Gateway::new(config).unwrap(), folder }
}
