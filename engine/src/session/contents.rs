//! What the bytes of a file are: text, a picture, or only bytes.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sandbox_schemas::files::{Contents, ReadOutcome};

/// What is in a whole file.
pub(super) fn of_file(bytes: Vec<u8>) -> Contents {
    if let Some(mime_type) = picture(&bytes) {
        return Contents { base64: Some(encoded(&bytes)), mime_type: Some(mime_type.into()), text: None };
    }
    match String::from_utf8(bytes) {
        Ok(text) => Contents { text: Some(text), ..Contents::default() },
        Err(error) => Contents { base64: Some(encoded(error.as_bytes())), ..Contents::default() },
    }
}

/// What was read of a file from `offset` on.
pub(crate) fn of_part(mut bytes: Vec<u8>, offset: u64, size_bytes: u64) -> ReadOutcome {
    let mut next = offset + bytes.len() as u64;
    if offset == 0 && next >= size_bytes {
        return ReadOutcome { size_bytes, next, contents: of_file(bytes) };
    }
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
        && next < size_bytes
        && error.valid_up_to() > 0
    {
        // Cut within a character: the rest of it comes next.
        bytes.truncate(error.valid_up_to());
        next = offset + bytes.len() as u64;
    }
    let contents = match String::from_utf8(bytes) {
        Ok(text) => Contents { text: Some(text), ..Contents::default() },
        Err(error) => Contents { base64: Some(encoded(error.as_bytes())), ..Contents::default() },
    };
    ReadOutcome { size_bytes, next, contents }
}

fn encoded(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Whether it begins as a picture does.
pub(crate) fn is_picture(bytes: &[u8]) -> bool {
    picture(bytes).is_some()
}

/// Which kind of picture that a model could see it is, by its first bytes.
fn picture(bytes: &[u8]) -> Option<&'static str> {
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    match bytes {
        _ if begins(b"\x89PNG\r\n\x1a\n") => Some("image/png"),
        _ if begins(b"\xff\xd8\xff") => Some("image/jpeg"),
        _ if begins(b"GIF87a") || begins(b"GIF89a") => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_and_the_rest_is_bytes() {
        let shown = |contents: Contents| (contents.text, contents.base64, contents.mime_type);
        assert_eq!(shown(of_file("\u{e9}\n".into())), (Some("\u{e9}\n".into()), None, None));
        assert_eq!(shown(of_file(Vec::new())), (Some(String::new()), None, None));
        assert_eq!(shown(of_file(vec![0xff, 0])), (None, Some("/wA=".into()), None));
        let png = b"\x89PNG\r\n\x1a\nrest";
        assert_eq!(of_file(png.to_vec()).mime_type.as_deref(), Some("image/png"));
        assert_eq!(of_part(png.to_vec(), 0, 100).contents.mime_type, None, "a part of one cannot be seen");
    }

    #[test]
    fn a_part_ends_between_two_characters() {
        let part = of_part("a\u{e9}".as_bytes()[..2].to_vec(), 10, 100);
        assert_eq!((part.contents.text.as_deref(), part.next), (Some("a"), 11));
        let part = of_part("\u{e9}".as_bytes()[..1].to_vec(), 10, 100);
        assert_eq!((part.contents.base64.as_deref(), part.next), (Some("ww=="), 11), "no progress would be made");
        let part = of_part("a\u{e9}".as_bytes()[..2].to_vec(), 98, 100);
        assert_eq!((part.contents.base64.as_deref(), part.next), (Some("YcM="), 100), "nothing comes behind it");
        let part = of_part(b"a\xff".to_vec(), 0, 100);
        assert_eq!(part.next, 2);
    }
}
