//! The beginning and the end of a text that is longer than its reader wants to pay for.

/// What was left out of a text, and what is left of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Excerpt {
    /// With a line that says how much is missing, in its place.
    pub(crate) text: String,
    /// What is missing, in words.
    pub(crate) left_out: String,
    /// Where that begins, in bytes.
    pub(crate) begin: usize,
}

/// Of a text of more than `most` characters its head and its tail, cut between lines where that leaves enough. A reader wants to know
/// how it began, and above all how it ended.
pub(crate) fn excerpt(text: &str, most: usize) -> Option<Excerpt> {
    // Few texts are that long, and of those that are not few need to be counted.
    if text.len() <= most || text.chars().count() <= most {
        return None;
    }
    let half = most / 2;
    let at = |(at, _): (usize, char)| at;
    let begin = text.char_indices().nth(half).map_or(text.len(), at);
    let end = text.char_indices().nth_back(half.max(1) - 1).map_or(0, at);
    // A line is worth more than a part of one, if it is not most of what there would be.
    let begin = text[..begin].rfind('\n').map(|line_end| line_end + 1).filter(|cut| *cut > begin / 2).unwrap_or(begin);
    let rest = text.len() - end;
    let end = text[end..]
        .find('\n')
        .map(|line_end| end + line_end + 1)
        .filter(|cut| text.len() - cut > rest / 2)
        .unwrap_or(end);

    let missing = &text[begin..end];
    let is_of_lines = text[..begin].ends_with('\n') && missing.ends_with('\n');
    let left_out = match (is_of_lines, missing.lines().count(), missing.chars().count()) {
        (true, 1, _) => "1 line".into(),
        (true, lines, _) => format!("{lines} lines"),
        (false, _, characters) => format!("{characters} characters"),
    };
    let line_end = if text[..begin].ends_with('\n') { "" } else { "\n" };
    let text = format!("{}{line_end}[... {left_out} left out ...]\n{}", &text[..begin], &text[end..]);
    Some(Excerpt { text, left_out, begin })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fits_is_left_alone() {
        assert_eq!(excerpt("", 0), None);
        assert_eq!(excerpt("12345", 5), None);
        assert_eq!(excerpt("é€😀", 3), None);
    }

    #[test]
    fn it_is_cut_between_lines() {
        let text: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        let cut = excerpt(&text, 100).unwrap();
        assert_eq!(
            cut.text,
            "line 0\nline 1\nline 2\nline 3\nline 4\nline 5\nline 6\n[... 988 lines left out ...]\n\
             line 995\nline 996\nline 997\nline 998\nline 999\n"
        );
        assert_eq!((cut.left_out.as_str(), cut.begin), ("988 lines", 49));
    }

    #[test]
    fn a_long_line_is_cut_within_and_never_within_a_character() {
        let cut = excerpt(&"€".repeat(1000), 10).unwrap();
        assert_eq!(cut.text, "€€€€€\n[... 990 characters left out ...]\n€€€€€");
        assert_eq!(cut.begin, 15);
        let cut = excerpt(&format!("short\n{}\nend\n", "x".repeat(1000)), 100).unwrap();
        assert!(cut.text.starts_with("short\nxxxx") && cut.text.ends_with("xxx\nend\n"), "{}", cut.text);
        assert_eq!(cut.left_out, "911 characters");
    }

    #[test]
    fn nothing_of_it_is_more_than_asked_for_but_the_line_that_says_so() {
        let text = "a\nbb\nccc\ndddd\n".repeat(100);
        for most in 0..300 {
            let cut = excerpt(&text, most).unwrap();
            assert!(cut.text.chars().count() <= most + 45, "{most}: {}", cut.text);
        }
    }
}
