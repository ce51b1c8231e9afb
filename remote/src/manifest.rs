//! What is believed of a manifest, and what is authenticated.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sandbox_schemas::image::Digest;
use sandbox_schemas::remote::{
    FRAME_PLAIN_MAX_BYTES, FRAME_STORED_MAX_BYTES, REMOTE_FORMAT, REMOTE_FRAMES_MAX, REMOTE_PART_MAX_BYTES,
    REMOTE_PARTS_MAX, RemoteManifest, RemotePart,
};
use sandbox_store::{EntryId, is_part_name};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::secret::Secret;

/// What may be set of a file's permissions: nobody else writes, and nothing is set-uid.
const MODE_MASK: u32 = 0o755;

/// Why a manifest is not believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unbelieved {
    #[error("the manifest cannot be read: {0}")]
    Malformed(String),
    #[error("the manifest has format {0}, this program reads {REMOTE_FORMAT}")]
    Format(u32),
    #[error("the manifest is of another entry, {0}")]
    OtherEntry(String),
    #[error("the manifest is not authenticated")]
    Unauthenticated,
    #[error("the manifest was not written by a host that has the key of s3_hmac_key_file")]
    Forged,
    #[error("the manifest is wrong about {0}")]
    Wrong(&'static str),
}

/// Reads a manifest. With a key, nothing is believed that was not authenticated with it.
pub(crate) fn read(bytes: &[u8], wanted: &EntryId, secret: Option<&Secret>) -> Result<RemoteManifest, Unbelieved> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let malformed = |error: serde_json::Error| Unbelieved::Malformed(error.to_string());
    let Format { format } = serde_json::from_slice(bytes).map_err(malformed)?;
    if format != REMOTE_FORMAT {
        return Err(Unbelieved::Format(format));
    }
    let manifest: RemoteManifest = serde_json::from_slice(bytes).map_err(malformed)?;
    if let Some(secret) = secret {
        let hmac_sha256 = manifest.hmac_sha256.ok_or(Unbelieved::Unauthenticated)?;
        if !secret.is_authentic(&authenticated(&manifest), hmac_sha256) {
            return Err(Unbelieved::Forged);
        }
    }
    let EntryId { kind, name, key } = wanted;
    if (manifest.kind.as_str(), &manifest.name, manifest.key) != (kind.folder(), name, *key) {
        let RemoteManifest { kind, name, key, .. } = manifest;
        return Err(Unbelieved::OtherEntry(format!("{kind}/{name}-{}", key.short())));
    }
    check(&manifest).map_or(Ok(manifest), |what| Err(Unbelieved::Wrong(what)))
}

/// Whether what it speaks of is older than that. What does not say is as old as anything.
pub(crate) fn was_made_before(manifest: &RemoteManifest, since: SystemTime) -> bool {
    let made = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    manifest.made_unix_seconds.and_then(made).is_none_or(|made| made < since)
}

/// What is wrong with it, though somebody has vouched for it or need not.
fn check(manifest: &RemoteManifest) -> Option<&'static str> {
    let RemoteManifest { parts, upload, .. } = manifest;
    let frames: usize = parts.iter().map(|part| part.frames.len()).sum();
    let are_names_ascending = parts.windows(2).all(|two| two[0].name < two[1].name);
    if !is_plain_name(upload) || parts.iter().any(|part| !is_plain_name(&part.name)) {
        Some("a name")
    } else if parts.is_empty() || parts.len() > REMOTE_PARTS_MAX || !are_names_ascending {
        Some("its parts")
    } else if frames > REMOTE_FRAMES_MAX {
        Some("its frames")
    } else {
        parts.iter().find_map(check_part)
    }
}

fn check_part(part: &RemotePart) -> Option<&'static str> {
    let is_wrong = part.frames.iter().any(|frame| {
        frame.stored_bytes == 0
            || frame.stored_bytes as usize > FRAME_STORED_MAX_BYTES
            || frame.plain_bytes as usize > FRAME_PLAIN_MAX_BYTES
    });
    match part {
        _ if is_wrong => Some("a frame's size"),
        RemotePart { size_bytes, .. } if *size_bytes > REMOTE_PART_MAX_BYTES => Some("a part's size"),
        RemotePart { mode, .. } if mode & !MODE_MASK != 0 => Some("a part's mode"),
        RemotePart { sha256, .. } if part_digest(part) != *sha256 => Some("a part's SHA-256"),
        _ => None,
    }
}

/// A name that is a file's in a folder, on this disk and in the bucket, and nothing else.
fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'+' | b'@');
    !name.is_empty() && name.len() <= 128 && is_part_name(name) && name.bytes().all(is_plain)
}

/// What may be kept of a file's permissions.
pub(crate) fn plain_mode(mode: u32) -> u32 {
    mode & MODE_MASK
}

/// What a part hashes to: what is known of it, and what each of its frames hashes to.
pub(crate) fn part_digest(part: &RemotePart) -> Digest {
    let mut encoder = Encoder::new("part");
    encoder.bytes(part.name.as_bytes()).number(part.size_bytes).number(part.data_bytes).number(part.mode.into());
    for frame in &part.frames {
        encoder.number(frame.stored_bytes.into()).number(frame.plain_bytes.into()).bytes(&frame.sha256.0);
    }
    Digest(Sha256::digest(encoder.0).into())
}

/// What a key vouches for: the entry's key and every part's hash, in which its frames' are.
pub(crate) fn authenticated(manifest: &RemoteManifest) -> Vec<u8> {
    let RemoteManifest { format, kind, name, key, upload, made_unix_seconds, parts, hmac_sha256: _ } = manifest;
    let mut encoder = Encoder::new("sandbox-mcp entry");
    encoder.number((*format).into());
    encoder.bytes(kind.as_bytes()).bytes(name.as_bytes()).bytes(&key.0).bytes(upload.as_bytes());
    encoder.number(made_unix_seconds.is_some().into()).number(made_unix_seconds.unwrap_or_default());
    for part in parts {
        encoder.bytes(part.name.as_bytes()).bytes(&part_digest(part).0);
    }
    encoder.0
}

/// Fields, each with its length before it, so that no two lists of fields look the same.
struct Encoder(Vec<u8>);

impl Encoder {
    fn new(what: &str) -> Encoder {
        let mut encoder = Encoder(Vec::new());
        encoder.bytes(what.as_bytes());
        encoder
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Encoder {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    fn number(&mut self, number: u64) -> &mut Encoder {
        self.bytes(&number.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_schemas::remote::RemoteFrame;
    use sandbox_store::Kind;

    fn wanted() -> EntryId {
        EntryId { kind: Kind::Template, name: "base".into(), key: Digest([7; 32]) }
    }

    fn secret() -> Secret {
        Secret::new(&[5; 32]).unwrap()
    }

    fn part(name: &str) -> RemotePart {
        let frame = RemoteFrame { stored_bytes: 10, plain_bytes: 20, sha256: Digest([1; 32]) };
        let frames = vec![frame, RemoteFrame { plain_bytes: 21, ..frame }];
        let (size_bytes, data_bytes, sha256) = (1 << 30, 8192, Digest([0; 32]));
        let part = RemotePart { name: name.into(), size_bytes, data_bytes, mode: 0o644, sha256, frames };
        RemotePart { sha256: part_digest(&part), ..part }
    }

    fn manifest() -> RemoteManifest {
        let EntryId { kind, name, key } = wanted();
        let (kind, parts) = (kind.folder().into(), vec![part("manifest.json"), part("ram")]);
        let upload = "0123456789abcdef".into();
        let made_unix_seconds = Some(1_800_000_000);
        let manifest = RemoteManifest {
            format: REMOTE_FORMAT,
            kind,
            name,
            key,
            upload,
            made_unix_seconds,
            parts,
            hmac_sha256: None,
        };
        RemoteManifest { hmac_sha256: Some(secret().authenticate(&authenticated(&manifest))), ..manifest }
    }

    fn read_back(manifest: &RemoteManifest, secret: Option<&Secret>) -> Result<RemoteManifest, Unbelieved> {
        read(&serde_json::to_vec(manifest).unwrap(), &wanted(), secret)
    }

    type Change = fn(&mut RemoteManifest);

    /// Whatever a manifest says, changed.
    const CHANGES: [(&str, Change); 16] = [
        ("kind", |m| m.kind = "images".into()),
        ("name", |m| m.name.push('x')),
        ("key", |m| m.key.0[31] ^= 1),
        ("upload", |m| m.upload.push('0')),
        ("age", |m| m.made_unix_seconds = Some(0)),
        ("no age", |m| m.made_unix_seconds = None),
        ("part's name", |m| m.parts[1].name = "ran".into()),
        ("part's size", |m| m.parts[0].size_bytes += 1),
        ("part's data", |m| m.parts[0].data_bytes -= 1),
        ("part's mode", |m| m.parts[0].mode = 0o755),
        ("frame's hash", |m| m.parts[1].frames[0].sha256.0[0] ^= 1),
        ("frame's size", |m| m.parts[1].frames[1].plain_bytes += 1),
        ("frame's stored size", |m| m.parts[1].frames[1].stored_bytes += 1),
        ("frames' order", |m| m.parts[1].frames.swap(0, 1)),
        ("a part less", |m| drop(m.parts.pop())),
        ("a frame less", |m| m.parts[0].frames.truncate(1)),
    ];

    #[test]
    fn what_a_key_vouches_for_is_all_of_it() {
        assert_eq!(read_back(&manifest(), Some(&secret())), Ok(manifest()));
        for (what, change) in CHANGES {
            for rehash in [false, true] {
                let mut changed = manifest();
                change(&mut changed);
                if rehash {
                    changed.parts.iter_mut().for_each(|part| part.sha256 = part_digest(part));
                }
                assert_eq!(read_back(&changed, Some(&secret())), Err(Unbelieved::Forged), "{what}");
            }
        }
        let other = Secret::new(&[6; 32]).unwrap();
        assert_eq!(read_back(&manifest(), Some(&other)), Err(Unbelieved::Forged));
        let open = RemoteManifest { hmac_sha256: None, ..manifest() };
        assert_eq!(read_back(&open, Some(&secret())), Err(Unbelieved::Unauthenticated));
        assert_eq!(read_back(&open, None), Ok(open));
    }

    #[test]
    fn another_format_or_entry_is_none() {
        assert_eq!(read_back(&RemoteManifest { format: 1, ..manifest() }, None), Err(Unbelieved::Format(1)));
        for change in [CHANGES[0].1, CHANGES[1].1, CHANGES[2].1] {
            let mut changed = manifest();
            change(&mut changed);
            assert!(matches!(read_back(&changed, None), Err(Unbelieved::OtherEntry(_))));
        }
        let wrong = serde_json::to_string(&manifest()).unwrap();
        for text in [&wrong[..wrong.len() / 2], "", "{}", "[]", &wrong.replace("parts", "pieces")] {
            assert!(matches!(read(text.as_bytes(), &wanted(), None), Err(Unbelieved::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn without_a_key_nothing_is_written_where_or_as_it_must_not() {
        let changes: [(&str, Change); 12] = [
            ("a name", |m| m.parts[0].name = "../ram".into()),
            ("a name", |m| m.parts[0].name = String::new()),
            ("a name", |m| m.parts[0].name = ".sent-1".into()),
            ("a name", |m| m.parts[1].name = "verified.json".into()),
            ("a name", |m| m.upload = "a/b".into()),
            ("its parts", |m| m.parts.clear()),
            ("its parts", |m| m.parts.swap(0, 1)),
            ("its parts", |m| m.parts[0].name = "ram".into()),
            ("its frames", |m| m.parts[0].frames = vec![m.parts[0].frames[0]; REMOTE_FRAMES_MAX]),
            ("a frame's size", |m| m.parts[0].frames[0].plain_bytes = u32::MAX),
            ("a part's size", |m| m.parts[0].size_bytes = u64::MAX),
            ("a part's mode", |m| m.parts[0].mode = 0o4755),
        ];
        for (expected, change) in changes {
            let mut changed = manifest();
            change(&mut changed);
            changed.parts.iter_mut().for_each(|part| part.sha256 = part_digest(part));
            assert_eq!(read_back(&changed, None), Err(Unbelieved::Wrong(expected)));
        }
        let mut changed = manifest();
        changed.parts[0].sha256.0[0] ^= 1;
        assert_eq!(read_back(&changed, None), Err(Unbelieved::Wrong("a part's SHA-256")));
    }
}
