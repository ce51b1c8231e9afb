//! One stream of a program as the result keeps it: capped, and decoded as it comes so that no character is split.

/// What was kept of a stream.
#[derive(Debug)]
pub(crate) struct Capture {
    cap_bytes: usize,
    /// Bytes taken in, as written.
    taken_bytes: usize,
    text: String,
    /// The beginning of a character whose end has not come: at most 3 bytes.
    pending: Vec<u8>,
    truncated: bool,
    invalid_utf8: bool,
    /// Whether text is not kept once it was seen.
    is_passing: bool,
}

impl Capture {
    /// Of a stream of which nothing is kept but its figures.
    pub(crate) fn passing() -> Self {
        Capture { is_passing: true, ..Capture::new(usize::MAX) }
    }

    pub(crate) fn new(cap_bytes: usize) -> Self {
        Capture {
            cap_bytes,
            taken_bytes: 0,
            text: String::new(),
            pending: Vec::new(),
            truncated: false,
            invalid_utf8: false,
            is_passing: false,
        }
    }

    /// Takes in bytes; returns the text that they completed.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> &str {
        let room = self.cap_bytes - self.taken_bytes;
        let taken = &bytes[..bytes.len().min(room)];
        self.truncated |= taken.len() < bytes.len();
        self.taken_bytes += taken.len();

        if self.is_passing {
            self.text.clear();
        }
        let start = self.text.len();
        self.pending.extend_from_slice(taken);
        let undecoded = std::mem::take(&mut self.pending);
        let mut chunks = undecoded.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if chunks.peek().is_none() && is_incomplete(invalid) {
                self.pending = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.text.push(char::REPLACEMENT_CHARACTER);
                self.invalid_utf8 = true;
            }
        }
        &self.text[start..]
    }

    /// The stream has ended after `total_bytes`, as its writer counted them.
    pub(crate) fn finish(mut self, total_bytes: u64) -> Captured {
        if self.is_passing {
            self.text.clear();
        }
        // The writer is the guest, which sends no more than the cap: what it counts beyond was cut there.
        let total_bytes = total_bytes.max(self.taken_bytes as u64);
        let truncated = self.truncated || total_bytes > self.taken_bytes as u64;
        // A character that was cut at the cap is no fault of the program.
        if !self.pending.is_empty() && !truncated {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.invalid_utf8 = true;
        }
        Captured { text: self.text, total_bytes, truncated, invalid_utf8: self.invalid_utf8 }
    }
}

/// A stream that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) text: String,
    pub(crate) total_bytes: u64,
    pub(crate) truncated: bool,
    pub(crate) invalid_utf8: bool,
}

/// Whether these bytes could still become a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(cap: usize, chunks: &[&[u8]], total: u64) -> Captured {
        let mut capture = Capture::new(cap);
        for chunk in chunks {
            capture.push(chunk);
        }
        capture.finish(total)
    }

    #[test]
    fn a_text_is_the_same_however_it_is_split() {
        let text = "aé€😀z\n";
        let bytes = text.as_bytes();
        for at in 0..=bytes.len() {
            for to in at..=bytes.len() {
                let found = capture(1000, &[&bytes[..at], &bytes[at..to], &bytes[to..]], bytes.len() as u64);
                assert_eq!(found.text, text, "split at {at} and {to}");
                assert!(!found.invalid_utf8 && !found.truncated);
            }
        }
    }

    #[test]
    fn invalid_bytes_are_replaced_and_said_wherever_they_are_split() {
        let bytes = b"a\xff\xe2\x82b\xf0\x9f\x98";
        for at in 0..=bytes.len() {
            let found = capture(1000, &[&bytes[..at], &bytes[at..]], bytes.len() as u64);
            assert_eq!(found.text, "a\u{fffd}\u{fffd}b\u{fffd}", "split at {at}");
            assert!(found.invalid_utf8);
        }
    }

    #[test]
    fn the_cap_cuts_between_characters_and_is_said() {
        for cap in 0..4 {
            let found = capture(cap, &["€€".as_bytes()], 6);
            let kept = if cap < 3 { "" } else { "€" };
            let text = kept.to_string();
            assert_eq!(found, Captured { text, total_bytes: 6, truncated: true, invalid_utf8: false });
        }
        assert!(!capture(6, &["€€".as_bytes()], 6).truncated);
    }

    #[test]
    fn what_the_guest_held_back_counts_as_cut() {
        let found = capture(5, &[b"12345"], 1_000_000);
        assert!(found.truncated);
        assert_eq!(found.total_bytes, 1_000_000);
    }

    #[test]
    fn a_guest_that_counts_less_than_it_sent_is_not_believed() {
        assert_eq!(capture(5, &[b"12345"], 1).total_bytes, 5);
    }
}
