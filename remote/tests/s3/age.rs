//! What becomes too old, and what takes its place.

use std::time::{Duration, SystemTime};

use sandbox_remote::Pushed;
use sandbox_schemas::remote::RemoteManifest;
use sandbox_store::{Age, Fetched, Kind, Replaces, ShelfError, Tier};

use crate::hosts::{Content, Host, Owner, PATIENCE, config, entry};
use crate::weed;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn what_is_too_old_is_not_fetched_and_makes_room_for_what_is_young() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let new_host = || Host::new(config(&owner.bucket, &weed.url(), None));
    let (image, now) = (entry(Kind::Image), SystemTime::now());
    let push = |text: &str, days: u32, replaces: Replaces| {
        let host = new_host();
        drop(host.build(&image, &Content::small(text)));
        host.s3.push(&image, &host.path(&image), Some(Age { made: now - days * DAY, replaces })).unwrap()
    };
    let month_ago = now - 30 * DAY;
    let fetch = |expected: Option<&str>| {
        let host = new_host();
        // What is here is not lost for what is not there.
        drop(host.build(&image, &Content::small("old")));
        let lock = host.cache.shelf(image.kind).lock::<ShelfError>(&image.name, || Ok(())).unwrap();
        let fetched = host.cache.fetch_made_since(&image, Some(month_ago), lock, PATIENCE, |_| Ok(())).unwrap();
        assert_eq!(matches!(fetched, Fetched::Entry(..)), expected.is_some());
        Content::small(expected.unwrap_or("old")).check(&host.path(&image));
        assert_eq!(host.s3.status().rejected, 0);
        assert!(new_host().fetch(&image), "who does not ask for its age has it");
    };
    let too_old = Replaces::MadeBefore(month_ago);
    assert_eq!(push("of 40 days", 40, too_old), Pushed::Sent);
    fetch(None);
    assert_eq!(push("of 35 days", 35, too_old), Pushed::WasThere, "too old itself");
    assert_eq!(push("of 3 days", 3, too_old), Pushed::Sent);
    assert_eq!(owner.keys().len(), 2, "what was replaced is gone: {:?}", owner.keys());
    fetch(Some("of 3 days"));
    assert_eq!(push("of 2 days", 2, too_old), Pushed::WasThere);
    fetch(Some("of 3 days"));
    assert_eq!(push("of today", 0, Replaces::Any), Pushed::Sent);
    assert_eq!(owner.keys().len(), 2, "{:?}", owner.keys());
    fetch(Some("of today"));
}

#[test]
fn a_manifest_says_its_format_in_its_name_and_others_are_left_alone() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let image = entry(Kind::Image);
    let host = Host::new(config(&owner.bucket, &weed.url(), None));
    drop(host.build(&image, &Content::small("text")));
    let folder = format!("some/prefix/images/base-{}", image.key);
    // As an earlier and a later program may have left them.
    for other in ["manifest.json", "manifest-v3.json"] {
        owner.write(&format!("{folder}/{other}"), b"{\"format\": 3}".to_vec());
    }
    let other = Host::new(config(&owner.bucket, &weed.url(), None));
    assert!(!other.fetch(&image));
    assert_eq!(other.s3.status().rejected, 0, "nothing of ours is there, and so nothing that is damaged");
    assert_eq!(host.s3.push(&image, &host.path(&image), None).unwrap(), Pushed::Sent);
    assert!(other.fetch(&image));
    let manifest: RemoteManifest = serde_json::from_slice(&owner.read(&format!("{folder}/manifest-v2.json"))).unwrap();
    assert_eq!((manifest.format, manifest.made_unix_seconds), (2, None));
    assert_eq!(owner.keys().len(), 4, "{:?}", owner.keys());
}
