//! What one host has built, another gets.

use std::sync::Barrier;
use std::time::Instant;

use sandbox_remote::Pushed;
use sandbox_schemas::status::TierState;
use sandbox_store::{Kind, Tier};

use crate::hosts::{Content, Host, Owner, PATIENCE, config, entry, secret};
use crate::weed;

#[test]
fn what_one_host_has_built_another_gets() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let hosts = [(); 2].map(|()| Host::new(config(&owner.bucket, &weed.url(), secret(1))));
    let [one, other] = &hosts;
    // Longer than a piece of an upload.
    let (base, content) = (entry(Kind::Template), Content::template(40, 3));
    drop(one.build(&base, &content));
    assert_eq!(one.s3.status().state, TierState::Unknown, "nothing is contacted unless something is wanted");

    one.cache.offer(&base);
    assert!(one.cache.flush_tiers(PATIENCE));
    let status = one.s3.status();
    assert_eq!((status.state, status.uploads_done, status.uploads_pending), (TierState::Ok, 1, 0), "{status:?}");
    let keys = owner.keys();
    assert_eq!(keys.len(), 5, "{keys:?}");
    let key = base.key;
    assert!(keys.iter().all(|at| at.starts_with(&format!("some/prefix/templates/base-{key}/"))), "{keys:?}");
    let stored = owner.read(&owner.key_of("/ram.zst")).len();
    assert!((8 << 20..36 << 20).contains(&stored), "in several pieces, and compressed: {stored} bytes");
    assert_eq!(owner.open_uploads(), 0);

    let begun = Instant::now();
    assert!(other.fetch(&base));
    println!("40 MiB of content, {stored} bytes stored, were there after {:?}", begun.elapsed());
    content.check(&other.path(&base));
    let status = other.s3.status();
    assert_eq!((status.hits, status.misses, status.rejected), (1, 0, 0), "{status:?}");
    assert!(status.downloaded_mb * 1e6 > stored as f64);

    // It is known to be there, so nothing is sent again by either.
    for host in &hosts {
        host.cache.offer(&base);
        assert!(host.cache.flush_tiers(PATIENCE));
    }
    assert_eq!((owner.keys(), one.s3.status().uploads_done, other.s3.status().uploads_done), (keys, 1, 0));
    assert!(!other.fetch(&sandbox_store::EntryId { name: "another".into(), ..base }));
    assert_eq!(other.s3.status().misses, 1);
}

#[test]
fn two_hosts_that_build_the_same_do_no_harm() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let base = entry(Kind::Template);
    // No two builds of a template have the same content.
    let contents = [10, 20].map(|seed| Content::template(12, seed));
    let hosts = [(); 2].map(|()| Host::new(config(&owner.bucket, &weed.url(), secret(1))));
    for (host, content) in hosts.iter().zip(&contents) {
        drop(host.build(&base, content));
    }
    let barrier = Barrier::new(2);
    let results: Vec<_> = std::thread::scope(|scope| {
        let push = |host: &Host| {
            barrier.wait();
            host.s3.push(&entry(Kind::Template), &host.path(&entry(Kind::Template)), None).unwrap()
        };
        let pushing = hosts.each_ref().map(|host| scope.spawn(move || push(host)));
        pushing.into_iter().map(|pushing| pushing.join().unwrap()).collect()
    });
    assert!(results.contains(&Pushed::Sent), "{results:?}");
    let winner = results.iter().position(|result| *result == Pushed::Sent).unwrap();
    assert_eq!(results[1 - winner], Pushed::WasThere);
    assert_eq!(
        (owner.keys().len(), owner.open_uploads()),
        (5, 0),
        "what the second has sent is gone: {:?}",
        owner.keys()
    );
    let third = Host::new(config(&owner.bucket, &weed.url(), secret(1)));
    assert!(third.fetch(&base));
    contents[winner].check(&third.path(&base));
}

#[test]
fn an_entry_is_found_by_the_digits_of_its_key() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let host = Host::new(config(&owner.bucket, &weed.url(), None));
    let image = sandbox_store::EntryId { name: "my-root".into(), ..entry(Kind::Image) };
    drop(host.build(&image, &Content::small("text")));
    assert!(host.s3.find("07").unwrap().is_empty());
    assert_eq!(host.s3.push(&image, &host.path(&image), None).unwrap(), Pushed::Sent);
    assert_eq!(host.s3.push(&image, &host.path(&image), None).unwrap(), Pushed::WasThere);
    for digits in ["07", &image.key.short(), &image.key.to_string()] {
        assert_eq!(host.s3.find(digits).unwrap(), std::slice::from_ref(&image));
    }
    assert!(host.s3.find("08").unwrap().is_empty());
}
