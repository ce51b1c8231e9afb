//! The paths within its crate that a file names.

/// All that begin with `crate::`, without that; a list in braces is as many paths.
pub(crate) fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (at, begin) in code.match_indices("crate::") {
        // Not the end of another name.
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || "_$:".contains(c)) {
            take(&code[at + begin.len()..], &[], &mut paths);
        }
    }
    paths
}

/// Takes what is at the beginning of `text`: a name with others behind it, or a list of such. Returns what comes after.
fn take<'t>(text: &'t str, before: &[String], paths: &mut Vec<Vec<String>>) -> &'t str {
    let mut text = text.trim_start();
    if let Some(mut list) = text.strip_prefix('{') {
        loop {
            list = take(list, before, paths);
            // What it is called here.
            list = list.trim_start_matches(|c: char| c.is_alphanumeric() || c.is_whitespace() || c == '_');
            match list.strip_prefix(',') {
                Some(rest) => list = rest,
                None => return list.strip_prefix('}').unwrap_or(list),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut path = before.to_vec();
    if end > 0 && &text[..end] != "self" {
        path.push(text[..end].to_owned());
    }
    text = &text[end..];
    match text.strip_prefix("::") {
        Some(rest) => take(rest, &path, paths),
        None => {
            paths.push(path);
            text
        }
    }
}

#[test]
fn lists_are_as_many_paths() {
    let found =
        paths("use crate::a::{self, b::C, d::{E, F as G}};\nlet x = crate::h(1); my_crate::i; use other::crate::j;");
    let found: Vec<_> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a", "a::b::C", "a::d::E", "a::d::F", "h"]);
}
