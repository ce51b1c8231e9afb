//! Services that know no conditions, or let a host read and not write.

use std::sync::Barrier;
use std::time::Duration;

use sandbox_remote::Pushed;
use sandbox_schemas::status::TierState;
use sandbox_store::{EntryId, Kind, Tier};

use crate::hosts::{Content, Host, PATIENCE, config, entry, secret};
use crate::scripted::{Conditions, Rules, Scripted};

const RULES: Rules =
    Rules { conditions: Conditions::Heeded, is_read_only: false, manifest_takes: Duration::from_millis(200) };

#[test]
fn whatever_a_service_makes_of_conditions_one_entry_is_there_and_nothing_else() {
    for conditions in [Conditions::Heeded, Conditions::Unsupported, Conditions::Ignored] {
        let server = Scripted::start(Rules { conditions, ..RULES });
        let base = entry(Kind::Template);
        let contents = ["one", "other"].map(Content::small);
        let hosts = [(); 2].map(|()| Host::new(config("bucket", &server.url(), secret(1))));
        for (host, content) in hosts.iter().zip(&contents) {
            drop(host.build(&base, content));
        }
        let barrier = Barrier::new(2);
        let pushed: Vec<_> = std::thread::scope(|scope| {
            let push = |host: &Host| {
                barrier.wait();
                host.s3.push(&entry(Kind::Template), &host.path(&entry(Kind::Template)), None)
            };
            let pushing = hosts.each_ref().map(|host| scope.spawn(move || push(host)));
            pushing.into_iter().map(|pushing| pushing.join().unwrap().unwrap()).collect()
        });
        let winner = pushed.iter().position(|pushed| *pushed == Pushed::Sent).expect("one has sent it");
        assert_eq!(pushed[1 - winner], Pushed::WasThere, "{conditions:?}");
        assert_eq!(server.keys().len(), 2, "{conditions:?}: {:?}", server.keys());
        let third = Host::new(config("bucket", &server.url(), secret(1)));
        assert!(third.fetch(&base));
        contents[winner].check(&third.path(&base));
        let pushed = third.s3.push(&base, &third.path(&base), None).unwrap();
        assert_eq!((pushed, server.keys().len()), (Pushed::WasThere, 2), "{conditions:?}");
    }
}

#[test]
fn a_host_that_may_not_write_still_reads() {
    let server = Scripted::start(RULES);
    let (one, other) = (entry(Kind::Image), EntryId { name: "other".into(), ..entry(Kind::Image) });
    let builder = Host::new(config("bucket", &server.url(), None));
    for entry in [&one, &other] {
        drop(builder.build(entry, &Content::small("text")));
        builder.s3.push(entry, &builder.path(entry), None).unwrap();
    }
    server.set(Rules { is_read_only: true, ..RULES });
    let mut reads_only = config("bucket", &server.url(), None);
    // Longer than the test: whoever is left alone is left alone until its end.
    reads_only.timing.retry = PATIENCE;
    reads_only.timing.retry_max = PATIENCE;
    let host = Host::new(reads_only);
    assert!(host.fetch(&one));
    let own = EntryId { name: "own".into(), ..one };
    drop(host.build(&own, &Content::small("text of its own")));
    assert!(host.s3.push(&own, &host.path(&own), None).is_err());
    assert!(host.fetch(&other), "that it may not write is no reason not to read");
    let status = host.s3.status();
    assert_eq!((status.state, status.hits, status.misses), (TierState::Ok, 2, 0), "{status:?}");
    assert!(status.last_error.unwrap().contains("403"));
}
