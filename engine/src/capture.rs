//! One stream of a program as the result keeps it: its beginning and its end if it is long, and decoded as it comes so that no character
//! is split.

use std::borrow::Cow;
use std::collections::VecDeque;

/// What was kept of a stream.
#[derive(Debug)]
pub(crate) struct Capture {
    cap_bytes: usize,
    /// Bytes taken in, as written, up to the cap.
    taken_bytes: usize,
    text: String,
    /// The beginning of a character whose end has not come: at most 3 bytes.
    pending: Vec<u8>,
    /// What came after the cap: the end of the stream, half as much as the cap at most.
    tail: VecDeque<u8>,
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
            tail: VecDeque::new(),
            invalid_utf8: false,
            is_passing: false,
        }
    }

    /// Takes in bytes; returns the text that they completed, up to the cap in all.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> &str {
        let room = self.cap_bytes - self.taken_bytes;
        let (taken, beyond) = bytes.split_at(bytes.len().min(room));
        self.taken_bytes += taken.len();
        let most = self.cap_bytes / 2;
        self.tail.extend(&beyond[beyond.len().saturating_sub(most)..]);
        self.tail.drain(..self.tail.len().saturating_sub(most));

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
        // The writer is the guest, which sends no more than the cap and the end: what it counts beyond was cut there.
        let total_bytes = total_bytes.max((self.taken_bytes + self.tail.len()) as u64);
        let truncated = total_bytes > self.taken_bytes as u64;
        // A character that was cut at the cap is no fault of the program.
        if !self.pending.is_empty() && !truncated {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.invalid_utf8 = true;
        }
        if !self.tail.is_empty() {
            self.text = self.head_and_tail(total_bytes);
        }
        Captured { text: self.text, total_bytes, truncated, invalid_utf8: self.invalid_utf8 }
    }

    /// The beginning and the end of a stream, half the cap each, and between them a line that says how much is missing.
    fn head_and_tail(&mut self, total_bytes: u64) -> String {
        let half = self.cap_bytes / 2;
        let boundary =
            |text: &str, at: usize| (at..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
        let head = boundary(&self.text, half.min(self.text.len()).saturating_sub(3));
        // What the end still lacks came before the cap: there the text goes on as it was.
        let lacking = half.saturating_sub(self.tail.len());
        let begin = boundary(&self.text, self.text.len().saturating_sub(lacking)).max(head);
        let mut bytes = self.text.as_bytes()[begin..].to_vec();
        let is_joined = lacking > 0;
        if is_joined {
            bytes.append(&mut self.pending);
        }
        let rest: Vec<u8> = std::mem::take(&mut self.tail).into();
        // It may begin within a character.
        let partial = if is_joined { 0 } else { rest.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count() };
        bytes.extend_from_slice(&rest[partial..]);
        let tail = String::from_utf8_lossy(&bytes);
        self.invalid_utf8 |= matches!(tail, Cow::Owned(_));
        let left_out = total_bytes.saturating_sub((head + bytes.len()) as u64);
        let head = &self.text[..head];
        let line_end = if head.ends_with('\n') { "" } else { "\n" };
        format!("{head}{line_end}[... {left_out} bytes left out ...]\n{tail}")
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
    fn what_is_over_the_cap_leaves_the_beginning_and_the_end() {
        let text: String = (0..1000).map(|number| format!("{number:09}\n")).collect();
        // As a guest sends it: up to the cap as it comes, and of the rest the end.
        for cut in [100, 300, 1000, 5000] {
            let bytes = &text.as_bytes()[..cut.max(101)];
            let (live, rest) = bytes.split_at(100);
            let found = capture(100, &[live, &rest[rest.len().saturating_sub(50)..]], bytes.len() as u64);
            let (head, tail) = found.text.split_once("[... ").unwrap();
            let (left_out, tail) = tail.split_once(" bytes left out ...]\n").unwrap();
            assert!(text.starts_with(head.trim_end()) && head.len() >= 46, "{head}");
            assert!(text[..bytes.len()].ends_with(tail) && (49..=50).contains(&tail.len()), "{cut}: {tail}");
            let head = head.strip_suffix('\n').filter(|_| !text.starts_with(head)).unwrap_or(head);
            assert_eq!(left_out.parse::<usize>().unwrap() + head.len() + tail.len(), bytes.len());
            assert!(found.truncated && !found.invalid_utf8);
        }
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        let text = "€".repeat(1000);
        for cap in 100..110 {
            for total in [cap + 1, cap + cap / 2, 1500, 3000] {
                let bytes = &text.as_bytes()[..total / 3 * 3];
                let (live, rest) = bytes.split_at(cap.min(bytes.len()));
                let end = &rest[rest.len().saturating_sub(cap / 2)..];
                let found = capture(cap, &[live, end], total as u64 / 3 * 3);
                assert!(!found.text.contains(char::REPLACEMENT_CHARACTER), "{cap}, {total}: {}", found.text);
                assert!(!found.invalid_utf8);
            }
        }
        let found = capture(6, &["€€".as_bytes()], 6);
        assert_eq!(found, Captured { text: "€€".into(), total_bytes: 6, truncated: false, invalid_utf8: false });
    }

    #[test]
    fn a_guest_that_sends_without_end_fills_nothing() {
        let mut capture = Capture::new(1000);
        for _ in 0..1000 {
            capture.push(&[b'x'; 1000]);
        }
        assert!(capture.tail.capacity() < 4000 && capture.text.len() == 1000);
        assert!(capture.finish(0).text.len() < 1100);
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
