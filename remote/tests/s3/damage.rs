//! Objects that are not what they were.

use sandbox_remote::{Pushed, S3Config};
use sandbox_store::{EntryId, Kind, Tier};

use crate::hosts::{Content, Host, Owner, config, entry, secret};
use crate::proxy::Proxy;
use crate::weed;

/// What can happen to an object.
#[derive(Debug, Clone, Copy)]
enum Damage {
    FirstByte,
    MiddleByte,
    LastByte,
    HalfGone,
    ByteGone,
    AllGone,
    Missing,
}

const ALL: [Damage; 7] = [
    Damage::FirstByte,
    Damage::MiddleByte,
    Damage::LastByte,
    Damage::HalfGone,
    Damage::ByteGone,
    Damage::AllGone,
    Damage::Missing,
];

fn damage(owner: &Owner, key: &str, sound: &[u8], damage: Damage) {
    let (mut bytes, middle, last) = (sound.to_vec(), sound.len() / 2, sound.len() - 1);
    match damage {
        // Where zstd has its magic number, its data, and the end of its last block.
        Damage::FirstByte => bytes[0] ^= 1,
        Damage::MiddleByte => bytes[middle] ^= 0x10,
        Damage::LastByte => bytes[last] ^= 0x40,
        Damage::HalfGone => bytes.truncate(middle),
        Damage::ByteGone => bytes.truncate(last),
        Damage::AllGone => bytes.clear(),
        Damage::Missing => return owner.remove(key),
    }
    owner.write(key, bytes);
}

#[test]
fn whatever_is_damaged_is_a_miss_and_not_asked_for_again() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::to(weed.address());
    let shares = |secret| -> S3Config { config(&owner.bucket, &proxy.url(), secret) };
    // With a key and without one: hashes alone must do for an image.
    for (entry, secret) in [(entry(Kind::Template), secret(1)), (entry(Kind::Image), None)] {
        let content = Content::template(20, 5);
        let builder = Host::new(shares(secret.clone()));
        drop(builder.build(&entry, &content));
        builder.s3.push(&entry, &builder.path(&entry), None).unwrap();
        let keys: Vec<_> = owner.keys().into_iter().filter(|key| key.contains(entry.kind.folder())).collect();
        assert_eq!(keys.len(), 5);
        for key in keys {
            let sound = owner.read(&key);
            if sound.is_empty() {
                assert!(key.ends_with("/nothing.zst"));
                continue;
            }
            for how in ALL {
                damage(&owner, &key, &sound, how);
                let host = Host::new(shares(secret.clone()));
                assert!(!host.fetch(&entry), "{key} with {how:?}");
                let status = host.s3.status();
                let is_no_manifest =
                    key.contains("manifest") && !key.ends_with(".zst") && matches!(how, Damage::Missing);
                let expected = (0, 1, u64::from(!is_no_manifest));
                assert_eq!((status.hits, status.misses, status.rejected), expected, "{key} with {how:?}: {status:?}");
                let asked = proxy.requests_at_rest();
                if !is_no_manifest {
                    assert!(!host.fetch(&entry));
                    assert_eq!(proxy.requests_at_rest(), asked, "{key} with {how:?} was asked for again");
                }
                owner.write(&key, sound.clone());
            }
        }
        let host = Host::new(shares(secret));
        assert!(host.fetch(&entry), "all is sound again");
        content.check(&host.path(&entry));
    }
}

/// A template that a host has built and sent.
fn sent(sender: &Host) -> EntryId {
    let template = entry(Kind::Template);
    drop(sender.build(&template, &Content::small("text")));
    sender.s3.push(&template, &sender.path(&template), None).unwrap();
    template
}

#[test]
fn a_damaged_manifest_is_replaced_by_whoever_has_the_entry() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let new_host = || Host::new(config(&owner.bucket, &weed.url(), secret(1)));
    let sender = new_host();
    let template = sent(&sender);
    let place = owner.keys().into_iter().find(|key| key.contains("/manifest-v")).unwrap();
    let sound = owner.read(&place);
    let forged = String::from_utf8(sound.clone()).unwrap().replace("\"file\"", "\"life\"").into_bytes();
    for damaged in [vec![], b"{".to_vec(), sound[..sound.len() / 2].to_vec(), forged, vec![b' '; 3 << 20]] {
        owner.write(&place, damaged);
        assert!(!new_host().fetch(&template));
        let pushed = sender.s3.push(&template, &sender.path(&template), None).unwrap();
        assert_eq!(pushed, Pushed::Sent);
        assert!(new_host().fetch(&template));
        assert_eq!(sender.s3.push(&template, &sender.path(&template), None).unwrap(), Pushed::WasThere);
    }
}

#[test]
fn an_entry_that_is_found_damaged_is_replaced_by_who_has_built_it_instead() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let new_host = || Host::new(config(&owner.bucket, &weed.url(), secret(1)));
    let sender = new_host();
    let template = sent(&sender);
    for how in [Damage::MiddleByte, Damage::HalfGone, Damage::Missing] {
        let part = owner.key_of("/file.zst");
        damage(&owner, &part, &owner.read(&part), how);
        let finder = new_host();
        assert!(!finder.fetch(&template));
        drop(finder.build(&template, &Content::small("built instead")));
        finder.cache.offer(&template);
        assert!(finder.cache.flush_tiers(crate::hosts::PATIENCE));
        assert_eq!(finder.s3.status().uploads_done, 1, "{how:?}: {:?}", finder.s3.status());
        assert_eq!(owner.keys().len(), 2, "{how:?}: {:?}", owner.keys());
        let third = new_host();
        assert!(third.fetch(&template), "{how:?}");
        Content::small("built instead").check(&third.path(&template));
    }
}

#[test]
fn what_its_user_finds_wrong_is_not_fetched_again() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::to(weed.address());
    let host = Host::new(config(&owner.bucket, &proxy.url(), None));
    let image = entry(Kind::Image);
    drop(host.build(&image, &Content::small("built from something else")));
    host.s3.push(&image, &host.path(&image), None).unwrap();
    host.forget();
    let shelf = host.cache.shelf(Kind::Image);
    let mut checks = 0;
    for _ in 0..2 {
        let lock = shelf.try_lock("base").unwrap().unwrap();
        let check = |_: &std::path::Path| {
            checks += 1;
            Err::<(), _>("it is of another make".into())
        };
        host.cache.fetch(&image, lock, crate::hosts::PATIENCE, check).unwrap();
        assert!(!host.path(&image).exists());
    }
    let status = host.s3.status();
    assert_eq!((checks, status.rejected), (1, 1));
    assert!(status.last_error.unwrap().ends_with("it is of another make"));
}
