//! A registry that lies, stalls, breaks off, fails and disappears: an error that says which, and nothing that is left.

use std::time::Duration;

use sandbox_packages::{Allowlist, FetchError};

use crate::harness::{Fixture, eventually, gateway, http};
use crate::registry::{Answer, Registry, listed, sha256, wheel};

const FILE: &str = "a-1.0-py3-none-any.whl";
const PATH: &str = "/pypi/files/a/a-1.0-py3-none-any.whl";
const UPSTREAM: &str = "/files/a-1.0-py3-none-any.whl";

/// A registry with one project of one file, and a gateway before it.
fn pair(content: &[u8]) -> (Registry, Fixture) {
    let registry = Registry::start();
    registry.project("a", &[(FILE, content)]);
    let fixture = Fixture::before(&registry.base, Allowlist::off());
    (registry, fixture)
}

/// Content of which no part is like another.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * index / 251 % 256) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_the_index_says_is_broken_off_and_not_kept() {
    let right = content(300_000);
    let (registry, fixture) = pair(&right);
    let client = fixture.python(&["a"]).await;
    let mut wrong = right.clone();
    wrong[299_999] ^= 1;
    registry.answer(UPSTREAM, [Answer::Body(wrong)]);
    assert!(client.get(PATH).await.is_err(), "the connection breaks off");
    let [FetchError::Hash { expected, actual, .. }] = &client.session.report().failures[..] else {
        panic!("{:?}", client.failures())
    };
    assert!(expected.ends_with(&sha256(&right)) && expected != actual);
    assert!(fixture.files().is_empty(), "{:?}", fixture.files());
    // The next one who asks is served anew.
    registry.answer(UPSTREAM, [Answer::Body(right.clone())]);
    assert_eq!(fixture.python(&["a"]).await.get(PATH).await.unwrap(), (200, right));
    assert_eq!(fixture.files().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stalls_is_given_up() {
    let right = content(300_000);
    let (registry, fixture) = pair(&right);
    let client = fixture.python(&["a"]).await;
    registry.answer("/simple/b/", [Answer::Stalls { body: right.clone(), after: 10 }]);
    let (status, text) = client.text("/pypi/simple/b/").await;
    assert!(status == 424 && text.ends_with("/simple/b/ did not answer in time"), "{status} {text}");
    registry.answer(UPSTREAM, [Answer::Stalls { body: right, after: 200_000 }]);
    assert!(client.get(PATH).await.is_err());
    assert!(
        client.failures().iter().any(|text| text.ends_with("whl did not answer in time")),
        "{:?}",
        client.failures()
    );
    assert!(fixture.files().is_empty(), "{:?}", fixture.files());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_goes_on_where_it_was() {
    let right = content(300_000);
    let (registry, fixture) = pair(&right);
    let client = fixture.python(&["a"]).await;
    let breaks_off = Answer::BreaksOff { body: right.clone(), after: 120_000 };
    registry.answer(UPSTREAM, [breaks_off.clone()]);
    assert_eq!(client.get(PATH).await.unwrap(), (200, right.clone()));
    let ranges: Vec<_> = registry.requests(UPSTREAM).iter().map(|request| request.range).collect();
    assert_eq!(ranges, [None, Some(120_000), Some(240_000)]);
    // A server that knows no ranges sends it from the beginning.
    let (registry, fixture) = pair(&right);
    registry.answer(UPSTREAM, [breaks_off, Answer::Body(right.clone())]);
    assert_eq!(fixture.python(&["a"]).await.get(PATH).await.unwrap(), (200, right.clone()));
    // One that never comes to an end is given up.
    let (registry, fixture) = pair(&right);
    registry.answer(UPSTREAM, [Answer::BreaksOff { body: right.clone(), after: 10 }]);
    let client = fixture.python(&["a"]).await;
    assert!(client.get(PATH).await.is_err());
    assert_eq!(registry.requests(UPSTREAM).len(), 3);
    assert!(client.failures()[0].contains("cannot be reached"), "{:?}", client.failures());
    assert!(fixture.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_come_of_a_large_file_is_there_for_the_next_server() {
    let right = content(3_000_000);
    let (registry, fixture) = pair(&right);
    registry.answer(UPSTREAM, [Answer::BreaksOff { body: right.clone(), after: 1_500_000 }, Answer::Status(403)]);
    assert!(fixture.python(&["a"]).await.get(PATH).await.is_err());
    let [part] = &fixture.files()[..] else { panic!("{:?}", fixture.files()) };
    let part = fixture.folder.path().join("packages/files").join(part);
    registry.answer(UPSTREAM, [Answer::BreaksOff { body: right.clone(), after: 3_000_000 }]);
    let fixture = Fixture { gateway: gateway(fixture.folder.path(), &registry.base, Allowlist::off()), ..fixture };
    assert_eq!(fixture.python(&["a"]).await.get(PATH).await.unwrap(), (200, right.clone()));
    let ranges: Vec<_> = registry.requests(UPSTREAM).iter().map(|request| request.range).collect();
    assert_eq!(ranges, [None, Some(1_500_000), Some(1_500_000)]);
    assert!(!part.exists() && fixture.files().len() == 1);
    // All of it may have come, and its server have been killed before it was put into its place.
    std::fs::remove_file(fixture.folder.path().join("packages/files").join(&fixture.files()[0])).unwrap();
    std::fs::write(&part, &right).unwrap();
    assert_eq!(fixture.python(&["a"]).await.get(PATH).await.unwrap(), (200, right.clone()));
    assert_eq!(registry.requests(UPSTREAM).len(), 3);
    // What is no beginning of the file spoils one attempt, and is gone then.
    std::fs::remove_file(fixture.folder.path().join("packages/files").join(&fixture.files()[0])).unwrap();
    std::fs::write(&part, vec![7; 2_000_000]).unwrap();
    assert!(fixture.python(&["a"]).await.get(PATH).await.is_err());
    assert!(fixture.files().is_empty());
    assert_eq!(fixture.python(&["a"]).await.get(PATH).await.unwrap(), (200, right));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_is_asked_again_but_not_for_ever() {
    let (registry, fixture) = pair(b"x");
    let client = fixture.python(&["a"]).await;
    registry.answer("/simple/b/", [Answer::Status(503), Answer::Closes, Answer::Body(br#"{"files":[]}"#.into())]);
    assert_eq!(client.get("/pypi/simple/b/").await.unwrap().0, 200);
    registry.answer("/simple/c/", [Answer::Status(500)]);
    let (status, text) = client.text("/pypi/simple/c/").await;
    assert!(status == 424 && text.ends_with("/simple/c/ was answered with status 500"), "{status} {text}");
    assert_eq!(registry.requests("/simple/c/").len(), 3);
    // What will not change is not asked for again.
    registry.answer("/simple/d/", [Answer::Status(403)]);
    assert_eq!(client.get("/pypi/simple/d/").await.unwrap().0, 424);
    assert_eq!(client.get("/pypi/simple/none/").await.unwrap().0, 404);
    assert_eq!(registry.requests("/simple/d/").len() + registry.requests("/simple/none/").len(), 2);
    let unavailable: Vec<_> = client.session.report().unavailable.iter().map(ToString::to_string).collect();
    assert!(unavailable.contains(&"the registry has no package none".to_owned()), "{unavailable:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_there_is_named() {
    let fixture = Fixture::before("http://127.0.0.1:1", Allowlist::off());
    let (status, text) = fixture.npm(&["a"]).await.text("/npm/a").await;
    assert!(status == 424 && text.contains("http://127.0.0.1:1/npm/a cannot be reached: "), "{status} {text}");
    assert!(text.contains("onnection refused"), "the cause is told: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_or_has_no_end_is_an_error() {
    let (registry, fixture) = pair(b"x");
    let client = fixture.python(&["a"]).await;
    registry.answer("/simple/b/", [Answer::Body(b"{\"files\": 5}".into())]);
    let (status, text) = client.text("/pypi/simple/b/").await;
    assert!(status == 424 && text.contains("/simple/b/ makes no sense: "), "{text}");
    registry.answer("/simple/c/", [Answer::Endless]);
    let (status, text) = client.text("/pypi/simple/c/").await;
    assert!(status == 424 && text.ends_with("is larger than 67108864 bytes"), "{text}");
    registry.answer(UPSTREAM, [Answer::Endless]);
    assert!(client.get(PATH).await.is_err());
    assert!(
        client.failures().iter().any(|text| text.ends_with("whl is larger than 1 bytes")),
        "{:?}",
        client.failures()
    );
    assert!(fixture.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_a_few_times() {
    let (registry, fixture) = pair(b"x");
    let client = fixture.python(&["a"]).await;
    // The URLs in a page are relative to where the page came from in the end.
    registry.answer("/simple/b/", [Answer::Redirect("/elsewhere/deep/down/b/".into())]);
    let page = serde_json::json!({ "files": [listed("b-1.0-py3-none-any.whl", b"content")] });
    registry.answer("/elsewhere/deep/down/b/", [Answer::Body(page.to_string().into_bytes())]);
    registry.answer("/elsewhere/deep/files/b-1.0-py3-none-any.whl", [Answer::Redirect("/there".into())]);
    registry.answer("/there", [Answer::Body(b"content".into())]);
    // Only what is said to be JSON is read as JSON.
    let (status, text) = client.text("/pypi/simple/b/").await;
    assert_eq!((status, text.contains("b-1.0-py3-none-any.whl")), (200, true), "{text}");
    let file = client.get("/pypi/files/b/b-1.0-py3-none-any.whl").await.unwrap();
    assert_eq!(file, (200, b"content".to_vec()));
    registry.answer("/simple/c/", [Answer::Redirect("/simple/c/".into())]);
    let (status, text) = client.text("/pypi/simple/c/").await;
    assert!(status == 424 && text.contains("too many redirects"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_an_index_names_is_fetched() {
    let (registry, fixture) = pair(b"x");
    let client = fixture.python(&["a"]).await;
    registry.answer("/secret", [Answer::Body(b"secret".into())]);
    client.get("/pypi/simple/a/").await.unwrap();
    let count = registry.count();
    for path in [
        "/pypi/files/a/../../secret",
        "/pypi/files/a/%2e%2e%2fsecret",
        "/pypi/files/a/b-1.0-py3-none-any.whl",
        "/secret",
        "/npm/a",
        "/",
        "/pypi/files/a/a-1.0.tar.gz",
    ] {
        assert_eq!(client.get(path).await.unwrap().0, 404, "{path}");
    }
    assert_eq!(registry.count(), count);
    for method in [reqwest::Method::POST, reqwest::Method::PUT, reqwest::Method::DELETE] {
        let response =
            http().request(method, format!("{}/pypi/simple/a/", client.base)).body("x").send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers()["allow"].to_str().unwrap()), (405, "GET, HEAD"));
    }
    let response = http().head(format!("{}/pypi/simple/a/", client.base)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_once_for_all() {
    let right = content(300_000);
    let (registry, fixture) = pair(&right);
    registry.answer(UPSTREAM, [Answer::Slow { body: right.clone(), pause: Duration::from_millis(300) }]);
    let clients = [fixture.python(&["a"]).await, fixture.python(&["a"]).await];
    let all = (0..8).map(|index| clients[index % 2].get(PATH));
    for result in futures_util::future::join_all(all).await {
        assert_eq!(result.unwrap(), (200, right.clone()));
    }
    assert_eq!(registry.requests(UPSTREAM).len(), 1);
    // Another server of the same user finds it, and looks at it before it is believed.
    let other = Fixture { gateway: gateway(fixture.folder.path(), &registry.base, Allowlist::off()), ..fixture };
    let client = other.python(&["a"]).await;
    assert_eq!(client.get(PATH).await.unwrap(), (200, right.clone()));
    let report = client.session.report();
    assert_eq!((report.cached_bytes, report.downloaded_bytes, report.files[0].is_cached), (300_000, 0, true));
    let [file] = &other.files()[..] else { panic!("{:?}", other.files()) };
    std::fs::write(other.folder.path().join("packages/files").join(file), "changed").unwrap();
    let client = other.python(&["a"]).await;
    assert_eq!(client.get(PATH).await.unwrap(), (200, right));
    let report = client.session.report();
    assert_eq!((report.cached_bytes, report.downloaded_bytes), (0, 300_000));
    assert_eq!(registry.requests(UPSTREAM).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_any_more_is_not_fetched() {
    let right = content(300_000);
    let (registry, fixture) = pair(&right);
    registry.answer(UPSTREAM, [Answer::Slow { body: right, pause: Duration::from_secs(30) }]);
    let client = fixture.python(&["a"]).await;
    let mut response = http().get(format!("{}{PATH}", client.base)).send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some(), "the first half comes while the second is waited for");
    assert_eq!(fixture.files().len(), 1);
    drop(client);
    eventually("the part of the file is removed", || fixture.files().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_written_is_an_error() {
    let (_registry, fixture) = pair(b"x");
    let client = fixture.python(&["a"]).await;
    std::fs::remove_dir_all(fixture.folder.path().join("packages/files")).unwrap();
    let (status, text) = client.text(PATH).await;
    assert!(status == 424 && text.starts_with("the download cache cannot be used: "), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_for_the_index_and_its_own_files_only() {
    let (registry, elsewhere) = (Registry::start(), Registry::start());
    let file = |index: usize| format!("a-{index}.0-py3-none-any.whl");
    let mut other = listed(&file(2), b"two");
    other["url"] = format!("{}/files/{}", elsewhere.base, file(2)).into();
    registry.page("a", vec![listed(&file(1), b"one"), other]);
    registry.answer(&format!("/files/{}", file(1)), [Answer::Body(b"one".into())]);
    elsewhere.answer(&format!("/files/{}", file(2)), [Answer::Body(b"two".into())]);
    let base = registry.base.replace("://", "://user:secret@");
    let fixture = Fixture::before(&base, Allowlist::off());
    let client = fixture.python(&["a"]).await;
    for index in [1, 2] {
        assert_eq!(client.get(&format!("/pypi/files/a/{}", file(index))).await.unwrap().0, 200);
    }
    let basic = Some("Basic dXNlcjpzZWNyZXQ=".to_owned());
    assert_eq!(registry.requests("/simple/a/")[0].authorization, basic);
    assert_eq!(registry.requests(&format!("/files/{}", file(1)))[0].authorization, basic);
    assert_eq!(elsewhere.requests(&format!("/files/{}", file(2)))[0].authorization, None);
    registry.answer("/simple/b/", [Answer::Closes]);
    let (status, text) = client.text("/pypi/simple/b/").await;
    assert!(status == 424 && text.contains("/simple/b/") && !text.contains("secret"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_lies_beside_a_wheel_or_is_taken_out_of_it() {
    let registry = Registry::start();
    let whole = wheel("a", "1.0", &["b"]);
    let fixture = Fixture::before(&registry.base, Allowlist::off());
    let metadata = format!("{PATH}.metadata");
    // Taken out: then the wheel is there when it is wanted.
    registry.project("a", &[(FILE, &whole)]);
    let client = fixture.python(&["a"]).await;
    let (status, text) = client.text(&metadata).await;
    assert!(status == 200 && text.ends_with("Requires-Dist: b\n"), "{text}");
    assert_eq!(client.get(PATH).await.unwrap(), (200, whole.clone()));
    assert_eq!(registry.requests(UPSTREAM).len(), 1);
    let report = client.session.report();
    assert_eq!((report.downloaded_bytes, report.cached_bytes), (whole.len() as u64, 0));
    assert!(!report.files[0].is_cached, "this install has had it sent");
    // Beside it, with a hash that is checked; promised and not there.
    for (beside, hash, expected) in [
        (Some("Name: a\n"), sha256(b"Name: a\n"), 200),
        (Some("Name: evil\n"), sha256(b"Name: a\n"), 424),
        (None, sha256(b"Name: a\n"), 200),
    ] {
        let registry = Registry::start();
        registry.project("a", &[(FILE, &whole)]);
        let mut file = listed(FILE, &whole);
        file["core-metadata"] = serde_json::json!({ "sha256": hash });
        registry.page("a", vec![file]);
        if let Some(text) = beside {
            registry.answer(&format!("{UPSTREAM}.metadata"), [Answer::Body(text.into())]);
        }
        let fixture = Fixture::before(&registry.base, Allowlist::off());
        let (status, text) = fixture.python(&["a"]).await.text(&metadata).await;
        assert_eq!(status, expected, "{text}");
        assert_eq!(registry.requests(UPSTREAM).len(), usize::from(beside.is_none()));
    }
}
