//! A program that ends while something is being sent.

use std::time::{Duration, Instant};

use sandbox_store::{Kind, Tier};

use crate::hosts::{Content, Host, Owner, config, entry, secret};
use crate::proxy::{Manner, Proxy};
use crate::weed;

#[test]
fn what_is_being_sent_at_the_end_is_given_up_at_once_and_leaves_nothing() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::to(weed.address());
    let sender = Host::new(config(&owner.bucket, &proxy.url(), secret(1)));
    let template = entry(Kind::Template);
    drop(sender.build(&template, &Content::template(48, 12)));
    proxy.set(Manner::SlowUp(5 << 20));
    sender.cache.offer(&template);
    let until = Instant::now() + Duration::from_secs(60);
    while sender.s3.status().uploaded_mb < 8.0 {
        assert!(Instant::now() < until, "{:?}", sender.s3.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(owner.open_uploads(), 1, "this is what is to be given up");
    proxy.set(Manner::Pass);
    let begun = Instant::now();
    sender.cache.close_tiers(Duration::from_secs(20));
    println!("given up within {:?}", begun.elapsed());
    assert_eq!(sender.s3.status().uploads_pending, 0);
    assert_eq!((owner.open_uploads(), owner.keys()), (0, vec![]));
    sender.cache.offer(&template);
    assert_eq!(sender.s3.status().uploads_pending, 0, "nothing more is taken");
}

#[test]
fn a_server_that_does_not_answer_does_not_hold_the_end_up() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::to(weed.address());
    proxy.set(Manner::Silent);
    let sender = Host::new(config(&owner.bucket, &proxy.url(), secret(1)));
    let template = entry(Kind::Template);
    drop(sender.build(&template, &Content::small("text")));
    sender.cache.offer(&template);
    std::thread::sleep(Duration::from_millis(200));
    let begun = Instant::now();
    sender.cache.close_tiers(Duration::from_millis(500));
    drop(sender);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}
