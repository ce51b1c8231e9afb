//! Output of calls that was too much to be returned: a file each in the session, the last few of them.

use std::collections::VecDeque;

use sandbox_schemas::wire::Stream;

/// Files that are kept. They take of the room that programs have for theirs.
const KEPT_MAX: usize = 8;

/// What is in a file that has made room.
pub(super) const DROPPED: &str = "(dropped: newer output has taken its place)\n";

/// The files of one session.
#[derive(Debug, Default)]
pub(super) struct Kept {
    paths: VecDeque<String>,
    count: u64,
}

impl Kept {
    /// The path of the next file, and that of one that makes room for it.
    pub(super) fn next(&mut self, stream: Stream) -> (String, Option<String>) {
        self.count += 1;
        let path = format!("/tmp/sandbox-output-{}-{}.txt", self.count, stream.name());
        self.paths.push_back(path.clone());
        let oldest = if self.paths.len() > KEPT_MAX { self.paths.pop_front() } else { None };
        (path, oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_few_are_kept() {
        let mut kept = Kept::default();
        for number in 1..=KEPT_MAX {
            assert_eq!(kept.next(Stream::Stdout), (format!("/tmp/sandbox-output-{number}-stdout.txt"), None));
        }
        let (path, oldest) = kept.next(Stream::Stderr);
        assert_eq!(path, "/tmp/sandbox-output-9-stderr.txt");
        assert_eq!(oldest.as_deref(), Some("/tmp/sandbox-output-1-stdout.txt"));
    }
}
