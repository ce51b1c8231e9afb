//! URLs as messages and logs show them.

use std::fmt;
use std::sync::Arc;

use url::Url;

/// A URL as messages and logs show it: without a user's password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownUrl(Arc<str>);

impl From<&Url> for ShownUrl {
    fn from(url: &Url) -> ShownUrl {
        let mut url = url.clone();
        if !url.username().is_empty() || url.password().is_some() {
            let _ = url.set_username("");
            let _ = url.set_password(None);
        }
        ShownUrl(url.as_str().into())
    }
}

impl fmt::Display for ShownUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is to be a URL, as messages and logs show it, whether it is one or not.
pub fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |at| rest.split_at(at));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}{path}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let url: Url = "https://user:secret@example.com/simple/x/".parse().unwrap();
        assert_eq!(ShownUrl::from(&url).to_string(), "https://example.com/simple/x/");
        for (text, shown) in [
            ("https://user:s@cret@example.com:8/x?y@z", "https://***@example.com:8/x?y@z"),
            ("ftp://token@", "ftp://***@"),
            ("https://example.com/@scope", "https://example.com/@scope"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(without_credentials(text), shown);
        }
    }
}
