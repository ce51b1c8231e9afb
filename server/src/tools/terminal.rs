//! What a terminal would show in the end of what a program has written to it: progress bars that were drawn over are gone, and so
//! are colours.

use std::borrow::Cow;

use vte::{Params, Parser, Perform};

/// How far up a program can go to draw over what it has written: a tall screen.
const SCREEN_ROWS: usize = 200;

/// How far to the right a program can send its cursor: beyond that it wants blanks, not to be understood.
const COLUMNS_MAX: usize = 1000;

/// The text that is left to be seen. One that has no control characters but line ends and tabs is as it was.
pub(crate) fn as_shown(text: &str) -> Cow<'_, str> {
    // The end of a line may be written in two characters.
    let is_plain = |(at, c): (usize, char)| match c {
        '\n' | '\t' => true,
        '\r' => text[at + 1..].starts_with('\n'),
        c => !c.is_control(),
    };
    if text.char_indices().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut screen = Screen { blanks: text.len() + COLUMNS_MAX, ..Screen::default() };
    Parser::new().advance(&mut screen, text.as_bytes());
    Cow::Owned(screen.into_text())
}

/// Lines without end, and a place to write at. A character takes a column, also where it would take two or none: that matters only to
/// what is drawn over.
#[derive(Default)]
struct Screen {
    rows: Vec<Row>,
    row: usize,
    column: usize,
    /// How many more blanks may be made, where the cursor went or something was erased: many take few bytes to ask for.
    blanks: usize,
}

#[derive(Default, Clone)]
struct Row {
    text: Vec<char>,
    /// Whether something was drawn over: then blanks at its end are what that has left.
    is_redrawn: bool,
}

impl Screen {
    fn row(&mut self) -> &mut Row {
        if self.rows.len() <= self.row {
            self.rows.resize(self.row + 1, Row::default());
        }
        &mut self.rows[self.row]
    }

    fn put(&mut self, c: char) {
        let end = self.row().text.len();
        if self.column > end {
            match self.blanks.checked_sub(self.column - end) {
                Some(left) => self.blanks = left,
                None => self.column = end,
            }
        }
        let column = self.column;
        let row = self.row();
        if column < end {
            row.text[column] = c;
            row.is_redrawn = true;
        } else {
            row.text.resize(column, ' ');
            row.text.push(c);
        }
        self.column += 1;
    }

    /// Moves the cursor within its line.
    fn move_to(&mut self, column: usize) {
        self.column = column.min(COLUMNS_MAX.max(self.column));
    }

    /// Erases from the cursor to the end of its line, to its beginning, or all of it.
    fn erase(&mut self, what: u16) {
        let column = self.column;
        let erased = self.row().text.len().min(column + 1);
        let may_blank = what == 1 && self.blanks >= erased;
        if may_blank {
            self.blanks -= erased;
        }
        let row = self.row();
        row.is_redrawn = true;
        match what {
            0 => row.text.truncate(column),
            1 if may_blank => row.text[..erased].fill(' '),
            1 => {}
            _ => row.text.clear(),
        }
    }

    fn into_text(mut self) -> String {
        let mut text = String::new();
        // A line that has ended is followed by another, with nothing in it.
        self.row();
        for (number, row) in self.rows.iter().enumerate() {
            if number > 0 {
                text.push('\n');
            }
            let end = match row.is_redrawn {
                true => row.text.iter().rposition(|&c| c != ' ').map_or(0, |last| last + 1),
                false => row.text.len(),
            };
            text.extend(&row.text[..end]);
        }
        text
    }
}

impl Perform for Screen {
    fn print(&mut self, c: char) {
        if !c.is_control() {
            self.put(c);
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\n' => (self.row, self.column) = (self.row + 1, 0),
            b'\r' => self.column = 0,
            b'\x08' => self.column = self.column.saturating_sub(1),
            b'\t' => self.put('\t'),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], _: bool, action: char) {
        if !intermediates.is_empty() {
            return;
        }
        let first = params.iter().next().and_then(|values| values.first().copied()).unwrap_or(0);
        let count = usize::from(first.max(1));
        match action {
            'A' | 'F' => {
                let top = self.rows.len().saturating_sub(SCREEN_ROWS).min(self.row);
                self.row = self.row.saturating_sub(count).max(top);
            }
            // There is nothing below what was written.
            'B' | 'E' => self.row = (self.row + count).min(self.rows.len().saturating_sub(1).max(self.row)),
            'C' => self.move_to(self.column + count),
            'D' => self.column = self.column.saturating_sub(count),
            'G' => self.move_to(count - 1),
            'K' => self.erase(first),
            'J' if first == 0 => {
                self.erase(0);
                self.rows.truncate(self.row + 1);
            }
            _ => {}
        }
        if matches!(action, 'E' | 'F') {
            self.column = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(written: &str, shown: &str) {
        assert_eq!(as_shown(written), shown, "{written:?}");
    }

    #[test]
    fn plain_text_is_as_it_was() {
        for text in ["", "a", "a\n", "\n\na  \n", "tab\there\r\nnext\r\n", "é€😀\u{feff} नमस्ते\n"] {
            assert!(matches!(as_shown(text), Cow::Borrowed(_)), "{text:?}");
        }
    }

    #[test]
    fn what_was_drawn_over_is_gone() {
        check("  0%|   |\r 50%|#  |\r100%|## |\ndone\n", "100%|## |\ndone\n");
        check("working...\r          \rok\n", "ok\n");
        check("working...\r\x1b[Kok\n", "ok\n");
        check("longer\rab\n", "abnger\n");
        check("a  \rb\n", "b\n");
        check("typo\x08\x08xt\n", "tyxt\n");
        check("a\r\nb\x07\n", "a\nb\n");
        // Two bars, as tqdm draws them.
        check("one 0%\ntwo 0%\x1b[A\rone 9%\n\rtwo 9%\n", "one 9%\ntwo 9%\n");
        check("a\nb\nc\n\x1b[3A\x1b[Jd\n", "d\n");
        check("a\n\x1b[1A\x1b[2K", "");
    }

    #[test]
    fn colours_titles_and_the_rest_leave_nothing() {
        check("\x1b[1;31mred\x1b[0m and \x1b[38;2;1;2;3mblue\x1b[m\n", "red and blue\n");
        check("\x1b]0;title\x07x\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\n", "xlink\n");
        check("\x1b[?25lhidden cursor\x1b[?25h\x1b(B\n", "hidden cursor\n");
        check("nul\0s and \x7f\u{9b}c1\n", "nuls and c1\n");
        check("cut \x1b[3", "cut ");
    }

    #[test]
    fn a_program_cannot_make_much_of_little() {
        let far = "\x1b[65535C\x1b[65535Bx\n".repeat(1000);
        assert!(as_shown(&far).len() < 2 * far.len() + COLUMNS_MAX);
        let wide = format!("{}{}{}", "\n".repeat(200), "x".repeat(90_000), "\x1b[Ax".repeat(199));
        assert!(as_shown(&wide).len() < 4 * wide.len());
        let erased = "x".repeat(50_000) + &"\x1b[1K".repeat(200_000);
        let begun = std::time::Instant::now();
        as_shown(&erased);
        // Erased each time it would be ten thousand million characters.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
        let up = format!("{}\x1b[9999Ax\n", "line\n".repeat(1000));
        assert_eq!(as_shown(&up).lines().position(|line| line == "xine"), Some(1000 - SCREEN_ROWS));
    }
}
