//! A server, or a way to it, that is slow, refuses, fails or goes in the middle of something.

use std::time::{Duration, Instant};

use sandbox_remote::Pushed;
use sandbox_schemas::status::TierState;
use sandbox_store::{Kind, Tier};

use crate::hosts::{Content, Host, Owner, config, entry, secret};
use crate::proxy::{Manner, Proxy};
use crate::weed::{self, Weed};

/// A whole fetch that comes to nothing takes no longer, whatever is wrong: the connection, the answer, the stall, the estimate,
/// each once more, and a busy machine. A run that waits for it is served by then.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(15);

/// The least that an entry of these tests would take to build.
const BUILD: Duration = Duration::from_secs(5);

#[test]
fn wherever_an_upload_breaks_off_nobody_sees_half_an_entry() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::to(weed.address());
    let template = entry(Kind::Template);
    let content = Content::template(24, 9);
    let mut was_cut_off = 0;
    for requests in 0.. {
        assert!(requests < 60, "it never succeeds");
        let sender = Host::new(config(&owner.bucket, &proxy.url(), secret(1)));
        drop(sender.build(&template, &content));
        proxy.set(Manner::DieAfterRequests(requests));
        let pushed = sender.s3.push(&template, &sender.path(&template), None);
        let is_cut_off = proxy.manner() == Manner::Dead;
        proxy.set(Manner::Pass);
        assert_eq!(pushed.is_err(), is_cut_off, "after {requests} requests: {pushed:?}");
        // Whether the manifest had gone through or not: there is all of it, or nothing.
        let receiver = Host::new(config(&owner.bucket, &weed.url(), secret(1)));
        let is_there = receiver.fetch(&template);
        if is_there {
            content.check(&receiver.path(&template));
        }
        assert_eq!(receiver.s3.status().rejected, 0, "after {requests} requests: {:?}", receiver.s3.status());
        assert!(is_there || is_cut_off);
        if !is_cut_off {
            break;
        }
        was_cut_off += 1;
    }
    // Asked, four parts of which one in pieces, the manifest.
    assert!(was_cut_off >= 8, "{was_cut_off}");
}

#[test]
fn wherever_a_fetch_breaks_off_there_is_nothing_and_soon() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::to(weed.address());
    let template = entry(Kind::Template);
    let content = Content::template(24, 9);
    let sender = Host::new(config(&owner.bucket, &weed.url(), secret(1)));
    drop(sender.build(&template, &content));
    sender.s3.push(&template, &sender.path(&template), None).unwrap();
    let kib = 1024;
    let bytes = [0, 100, kib, 100 * kib, 1024 * kib, 8 * 1024 * kib, 12 * 1024 * kib];
    let dies = bytes.map(Manner::DieAfterBytes).into_iter();
    let silent = bytes[1..].iter().copied().map(Manner::SilentAfterBytes);
    let answers = ["403 Forbidden", "500 Internal Server Error", "503 Slow Down", "301 Moved Permanently", "200 OK"];
    let others = [Manner::Dead, Manner::Silent, Manner::SlowDown(100 * kib)].into_iter();
    for manner in dies.chain(silent).chain(answers.map(Manner::Answer)).chain(others) {
        let receiver = Host::new(config(&owner.bucket, &proxy.url(), secret(1)));
        proxy.set(manner);
        let begun = Instant::now();
        assert!(!receiver.fetch_within(&template, BUILD), "{manner:?}");
        assert!(begun.elapsed() < GIVEN_UP_WITHIN, "{manner:?} took {:?}", begun.elapsed());
        let status = receiver.s3.status();
        let is_garbage = manner == Manner::Answer("200 OK");
        let expected = if is_garbage { (TierState::Ok, 1) } else { (TierState::Failing, 0) };
        assert_eq!((status.state, status.rejected), expected, "{manner:?}: {status:?}");
        assert!(status.last_error.is_some() && status.misses == 1, "{manner:?}: {status:?}");
        println!("{manner:?}: {:?}, {}", begun.elapsed(), status.last_error.unwrap());
        // It is left alone, then asked again.
        proxy.set(Manner::Pass);
        let asked = proxy.connections();
        let begun = Instant::now();
        assert!(!receiver.fetch(&template));
        if begun.elapsed() < Duration::from_millis(100) {
            assert_eq!(proxy.connections(), asked, "{manner:?}: it was asked at once");
        }
        std::thread::sleep(Duration::from_millis(800));
        if is_garbage {
            assert!(!receiver.fetch(&template), "{manner:?}");
            continue;
        }
        // A server that is busy with other tests may let it wait for too long, once more.
        let until = Instant::now() + Duration::from_secs(60);
        while !receiver.fetch(&template) {
            assert!(Instant::now() < until, "{manner:?}: {:?}", receiver.s3.status());
            std::thread::sleep(Duration::from_millis(800));
        }
    }
}

#[test]
fn a_server_that_is_killed_and_comes_back_loses_nothing() {
    let Some(mut weed) = Weed::start() else { return };
    let owner = Owner::of_new_bucket(&weed);
    let proxy = Proxy::to(weed.address());
    let template = entry(Kind::Template);
    let content = Content::template(48, 11);
    let sender = Host::new(config(&owner.bucket, &proxy.url(), secret(1)));
    drop(sender.build(&template, &content));
    // In the middle of being sent, in the background.
    proxy.set(Manner::SlowUp(10 << 20));
    sender.cache.offer(&template);
    let until = Instant::now() + Duration::from_secs(60);
    while sender.s3.status().uploaded_mb < 8.0 {
        assert!(Instant::now() < until, "{:?}", sender.s3.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    weed.kill();
    proxy.set(Manner::Pass);
    assert!(sender.cache.flush_tiers(Duration::from_secs(60)), "{:?}", sender.s3.status());
    let status = sender.s3.status();
    assert_eq!((status.state, status.uploads_done, status.uploads_failed), (TierState::Failing, 0, 1), "{status:?}");
    let receiver = Host::new(config(&owner.bucket, &proxy.url(), secret(1)));
    assert!(!receiver.fetch_within(&template, BUILD));

    weed.restart();
    assert_eq!(sender.s3.push(&template, &sender.path(&template), None).unwrap(), Pushed::Sent);
    std::thread::sleep(Duration::from_millis(800));
    // In the middle of being fetched.
    proxy.set(Manner::SlowDown(10 << 20));
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| receiver.fetch(&template));
        while receiver.s3.status().downloaded_mb < 8.0 {
            assert!(!fetching.is_finished());
            std::thread::sleep(Duration::from_millis(10));
        }
        let killed = Instant::now();
        weed.kill();
        assert!(!fetching.join().unwrap());
        assert!(killed.elapsed() < GIVEN_UP_WITHIN);
    });
    weed.restart();
    proxy.set(Manner::Pass);
    // On a busy machine the server is not there at once, and each failure makes the tier wait for longer.
    let until = Instant::now() + Duration::from_secs(60);
    while !receiver.fetch(&template) {
        assert!(Instant::now() < until, "{:?}", receiver.s3.status());
        std::thread::sleep(Duration::from_millis(800));
    }
    content.check(&receiver.path(&template));
}

#[test]
fn what_cannot_be_sent_is_given_up_after_some_attempts() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::to(weed.address());
    let image = entry(Kind::Image);
    for answer in ["403 Forbidden", "507 Insufficient Storage", "503 Slow Down"] {
        proxy.set(Manner::Answer(answer));
        let asked = proxy.requests();
        let sender = Host::new(config(&owner.bucket, &proxy.url(), None));
        drop(sender.build(&image, &Content::small("text")));
        let begun = Instant::now();
        sender.cache.offer(&image);
        assert!(begun.elapsed() < Duration::from_millis(500), "an offer does not wait");
        assert!(sender.cache.flush_tiers(Duration::from_secs(120)));
        let status = sender.s3.status();
        assert_eq!((status.uploads_failed, status.state), (1, TierState::Failing), "{status:?}");
        let asked = proxy.requests() - asked;
        assert!((3..=6).contains(&asked), "three attempts, each of one request that may be repeated once: {asked}");
        assert!(status.last_error.unwrap().contains(&answer[..3]));
    }
    assert!(owner.keys().is_empty());
}

#[test]
fn a_slow_line_is_given_the_time_that_it_takes_and_one_that_stands_still_is_not() {
    let Some(weed) = weed::shared() else { return };
    let owner = Owner::of_new_bucket(weed);
    let proxy = Proxy::narrow_to(weed.address());
    let mut impatient = config(&owner.bucket, &proxy.url(), secret(1));
    // What the kernel has taken, up to 4 MiB, is gone within this; a piece of 10 MiB is not.
    impatient.timing.send = Duration::from_secs(9);
    let sender = Host::new(impatient);
    let template = entry(Kind::Template);
    let content = Content::template(24, 7);
    drop(sender.build(&template, &content));
    proxy.set(Manner::SlowUp(700 << 10));
    let begun = Instant::now();
    assert_eq!(sender.s3.push(&template, &sender.path(&template), None).unwrap(), Pushed::Sent);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(12), "the line was not slow: {took:?}");
    proxy.set(Manner::Pass);
    let receiver = Host::new(config(&owner.bucket, &weed.url(), secret(1)));
    assert!(receiver.fetch(&template), "{:?}", receiver.s3.status());
    content.check(&receiver.path(&template));

    let other = sandbox_store::EntryId { name: "other".into(), ..template };
    drop(sender.build(&other, &content));
    let before_mb = sender.s3.status().uploaded_mb;
    proxy.set(Manner::SlowUp(700 << 10));
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| sender.s3.push(&other, &sender.path(&other), None));
        while sender.s3.status().uploaded_mb < before_mb + 4.0 {
            assert!(!pushing.is_finished());
            std::thread::sleep(Duration::from_millis(10));
        }
        // In the middle of a piece.
        proxy.set(Manner::SlowUp(1));
        let begun = Instant::now();
        let error = pushing.join().unwrap().unwrap_err().to_string();
        assert_eq!(error, "nothing more could be sent for 9s");
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    });
    proxy.set(Manner::Pass);
}
