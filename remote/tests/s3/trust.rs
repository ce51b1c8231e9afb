//! Who is believed.

use sandbox_remote::{PushError, Pushed, S3};
use sandbox_schemas::remote::RemoteManifest;
use sandbox_store::{Kind, Tier};

use crate::hosts::{Content, Host, Owner, PATIENCE, config, entry, secret};
use crate::weed;

#[test]
fn a_template_is_shared_by_those_who_have_the_key_and_an_image_by_all_who_have_the_same_or_none() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let host = |secret| Host::new(config(&owner.bucket, &weed.url(), secret));
    let (template, image) = (entry(Kind::Template), entry(Kind::Image));
    let (keyed, open) = (host(secret(1)), host(None));
    drop(open.build(&template, &Content::small("from who knows whom")));
    drop(open.build(&image, &Content::small("an image")));
    open.cache.offer(&template);
    open.cache.offer(&image);
    assert!(open.cache.flush_tiers(PATIENCE));
    assert!(matches!(open.s3.push(&template, &open.path(&template), None), Err(PushError::NoKey)));
    assert_eq!(owner.keys().len(), 2, "an image without a key, and no template");
    assert!(host(None).fetch(&image));
    assert!(!host(secret(1)).fetch(&image), "who has a key believes nothing without it");

    drop(keyed.build(&template, &Content::small("from one of us")));
    drop(keyed.build(&image, &Content::small("an image of ours")));
    keyed.cache.offer(&template);
    keyed.cache.offer(&image);
    assert!(keyed.cache.flush_tiers(PATIENCE));
    assert_eq!(owner.keys().len(), 6, "neither stands in the other's way");
    for (secret, sees_template, sees_image) in [(secret(1), true, true), (secret(2), false, false), (None, false, true)]
    {
        let host = host(secret);
        assert_eq!((host.fetch(&template), host.fetch(&image)), (sees_template, sees_image));
        let expected = if host.s3.status().hmac_key_id.is_some() { "an image of ours" } else { "an image" };
        if sees_image {
            Content::small(expected).check(&host.path(&image));
        }
    }
}

#[test]
fn what_was_not_written_by_a_host_with_the_key_is_not_used() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let host = |secret| Host::new(config(&owner.bucket, &weed.url(), secret));
    let (template, other) = (entry(Kind::Template), entry(Kind::Template));
    let other = sandbox_store::EntryId { name: "other".into(), ..other };
    let [ours, theirs] = [1, 2].map(|byte| host(secret(byte)));
    drop(ours.build(&template, &Content::small("ours")));
    drop(theirs.build(&template, &Content::small("evil")));
    drop(ours.build(&other, &Content::small("another of ours")));
    for (host, entry) in [(&ours, &template), (&theirs, &template), (&ours, &other)] {
        host.s3.push(entry, &host.path(entry), None).unwrap();
    }
    let [our_id, their_id] = [&ours, &theirs].map(|host| host.s3.status().hmac_key_id.unwrap());
    let manifest_of = |name: &str, id: &str| {
        let keys = owner.keys().into_iter().filter(|key| key.contains(&format!("/{name}-")));
        let found: Vec<_> = keys.filter(|key| key.ends_with(&format!("manifest-v2-{id}.json"))).collect();
        assert_eq!(found.len(), 1);
        found[0].clone()
    };
    let place = manifest_of("base", &our_id);
    let sound = owner.read(&place);
    let parse = |bytes: &[u8]| serde_json::from_slice::<RemoteManifest>(bytes).unwrap();
    let evil = parse(&owner.read(&manifest_of("base", &their_id)));
    let elsewhere = parse(&owner.read(&manifest_of("other", &our_id)));
    let ours_now = parse(&sound);
    let forgeries = [
        ("theirs in our place", evil.clone()),
        ("theirs with our HMAC", RemoteManifest { hmac_sha256: ours_now.hmac_sha256, ..evil.clone() }),
        ("theirs without any", RemoteManifest { hmac_sha256: None, ..evil.clone() }),
        ("their parts in ours", RemoteManifest { parts: evil.parts, upload: evil.upload, ..ours_now.clone() }),
        ("another entry of ours", elsewhere),
        ("another format", RemoteManifest { format: 1, ..ours_now }),
    ];
    for (what, forgery) in forgeries {
        owner.write(&place, serde_json::to_vec(&forgery).unwrap());
        let host = host(secret(1));
        assert!(!host.fetch(&template), "{what}");
        assert_eq!(host.s3.status().rejected, 1, "{what}");
    }
    owner.write(&place, vec![b' '; 3 << 20]);
    assert!(!host(secret(1)).fetch(&template), "a manifest that is too long");
    owner.write(&place, sound);
    let host = host(secret(1));
    assert!(host.fetch(&template));
    Content::small("ours").check(&host.path(&template));
}

#[test]
fn what_came_without_a_key_is_not_vouched_for_later() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let image = entry(Kind::Image);
    let builder = Host::new(config(&owner.bucket, &weed.url(), None));
    drop(builder.build(&image, &Content::small("from who knows whom")));
    builder.s3.push(&image, &builder.path(&image), None).unwrap();
    let host = Host::new(config(&owner.bucket, &weed.url(), None));
    assert!(host.fetch(&image));
    // The same host, which was given a key since.
    let keyed = S3::new(config(&owner.bucket, &weed.url(), secret(1))).unwrap();
    assert!(matches!(keyed.push(&image, &host.path(&image), None), Err(PushError::Unvouched)));
    assert_eq!(keyed.push(&image, &builder.path(&image), None).unwrap(), Pushed::Sent, "what was built is vouched for");
}

#[test]
fn a_file_that_others_could_have_changed_is_not_sent() {
    use std::os::unix::fs::PermissionsExt;
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let host = Host::new(config(&owner.bucket, &weed.url(), None));
    let image = entry(Kind::Image);
    drop(host.build(&image, &Content::small("text")));
    let file = host.path(&image).join("file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = host.s3.push(&image, &host.path(&image), None).unwrap_err().to_string();
    assert_eq!(error, "file can be written by others than its owner (mode 666)");
    assert!(owner.keys().is_empty());
}
