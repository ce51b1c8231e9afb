//! A project's page as HTML: PEP 503, with what PEP 592, 658 and 714 have added.

use html5gum::{Token, Tokenizer};
use percent_encoding::percent_decode_str;
use sandbox_download::Checksum;
use url::Url;

use crate::pypi::listed::{Listed, Metadata};
use crate::upstream::resolve;

/// The files of a page that came from `base`: its anchors. Whatever else is in it does not matter.
pub(crate) fn parse(body: &[u8], base: &Url) -> Vec<Listed> {
    let tokens = Tokenizer::new(body);
    let mut base = base.clone();
    let mut listed = Vec::new();
    for Ok(token) in tokens {
        let Token::StartTag(tag) = token else { continue };
        let attribute = |name: &[u8]| tag.attributes.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
        let href = attribute(b"href");
        match (&**tag.name, href) {
            (b"base", Some(href)) => base = base.join(&href).unwrap_or(base),
            (b"a", Some(href)) => listed.extend(anchor(&base, &href, attribute)),
            _ => {}
        }
    }
    listed
}

fn anchor(base: &Url, href: &str, attribute: impl Fn(&[u8]) -> Option<String>) -> Option<Listed> {
    let url = resolve(base, href)?;
    let file = url.path_segments()?.next_back()?;
    let file = percent_decode_str(file).decode_utf8().ok()?.into_owned();
    let checksum = href.rsplit_once('#').and_then(|(_, fragment)| hash(fragment));
    let metadata = attribute(b"data-core-metadata").or_else(|| attribute(b"data-dist-info-metadata"));
    let metadata = match metadata.as_deref() {
        None | Some("false") => Metadata::Within,
        Some(text) => Metadata::Beside(hash(text)),
    };
    Some(Listed {
        file,
        url,
        checksum,
        size_bytes: None,
        requires_python: attribute(b"data-requires-python"),
        yanked: attribute(b"data-yanked"),
        metadata,
    })
}

fn hash(text: &str) -> Option<Checksum> {
    let (algorithm, digits) = text.split_once('=')?;
    Checksum::from_hex(algorithm, digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_files() {
        let sha256 = "b".repeat(64);
        let text = format!(
            "<!DOCTYPE html><html><body><h1>a &amp; b</h1>\n\
             <a href=\"../../f/a-1%2Bx-py3-none-any.whl#sha256={sha256}\" data-requires-python=\"&gt;=3.8\" \
             data-yanked=\"\" data-core-metadata='sha256={sha256}'>a</a><br/>\
             <A HREF=https://f.example.com/a-2.tar.gz>a</A><a name=x>y</a><a href='javascript:x'>"
        );
        let files = parse(text.as_bytes(), &"https://example.com/simple/a/".parse().unwrap());
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].file, "a-1+x-py3-none-any.whl");
        assert_eq!(files[0].url.as_str(), "https://example.com/f/a-1%2Bx-py3-none-any.whl");
        assert_eq!(files[0].checksum.as_ref().map(Checksum::hex), Some(sha256));
        assert_eq!(files[0].requires_python.as_deref(), Some(">=3.8"));
        assert_eq!(files[0].yanked.as_deref(), Some(""));
        assert!(matches!(files[0].metadata, Metadata::Beside(Some(_))));
        assert_eq!((files[1].file.as_str(), &files[1].metadata), ("a-2.tar.gz", &Metadata::Within));
        assert!(files[1].checksum.is_none());
    }
}
