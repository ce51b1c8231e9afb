//! What a file must hash to, as an index or a lock says it. A host that sends files is trusted for nothing else.

use std::fmt;
use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// How a file is hashed. The later, the stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// What npm had before its `integrity`. Weak, and all there is for packages of that time.
    Sha1,
    /// PyPI's.
    Sha256,
    /// Little used.
    Sha384,
    /// npm's.
    Sha512,
}

const ALGORITHMS: [(Algorithm, &str, usize); 4] = [
    (Algorithm::Sha1, "sha1", 20),
    (Algorithm::Sha256, "sha256", 32),
    (Algorithm::Sha384, "sha384", 48),
    (Algorithm::Sha512, "sha512", 64),
];

/// An expected hash. It is written as the name of a file in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Checksum {
    algorithm: Algorithm,
    bytes: Box<[u8]>,
}

impl Checksum {
    /// From the name of an algorithm and hexadecimal digits, as in PyPI's index.
    pub fn from_hex(algorithm: &str, digits: &str) -> Option<Checksum> {
        let bytes = digits.as_bytes().chunks(2).map(|pair| {
            let is_hex = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
            is_hex.then(|| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).flatten()
        });
        Checksum::new(algorithm, bytes.collect::<Option<Box<[u8]>>>()?)
    }

    /// The strongest of npm's `integrity`: algorithms with base64, separated by spaces, each perhaps with options after `?`.
    pub fn from_integrity(text: &str) -> Option<Checksum> {
        let read = |one: &str| {
            let (algorithm, rest) = one.split_once('-')?;
            let encoded = rest.split('?').next()?;
            Checksum::new(algorithm, STANDARD.decode(encoded).ok()?.into())
        };
        text.split_ascii_whitespace().filter_map(read).max_by_key(|checksum| checksum.algorithm)
    }

    fn new(algorithm: &str, bytes: Box<[u8]>) -> Option<Checksum> {
        let (algorithm, _, length) = ALGORITHMS.into_iter().find(|(_, name, _)| *name == algorithm)?;
        (bytes.len() == length).then_some(Checksum { algorithm, bytes })
    }

    /// How it was hashed.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The algorithm, as indexes name it.
    pub fn algorithm_name(&self) -> &'static str {
        ALGORITHMS.into_iter().find(|(algorithm, ..)| *algorithm == self.algorithm).map_or("", |(_, name, _)| name)
    }

    /// In hexadecimal digits, lower case.
    pub fn hex(&self) -> String {
        self.bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// As npm writes it.
    pub fn integrity(&self) -> String {
        format!("{}-{}", self.algorithm_name(), STANDARD.encode(&self.bytes))
    }

    /// Something that hashes as this was hashed.
    pub fn hasher(&self) -> Hasher {
        Hasher(match self.algorithm {
            Algorithm::Sha1 => Function::Sha1(Sha1::new()),
            Algorithm::Sha256 => Function::Sha256(Sha256::new()),
            Algorithm::Sha384 => Function::Sha384(Sha384::new()),
            Algorithm::Sha512 => Function::Sha512(Sha512::new()),
        })
    }

    /// Whether `hasher` has come to this. The other checksum, if not.
    pub fn compare(&self, hasher: Hasher) -> Result<(), Checksum> {
        let bytes: Box<[u8]> = match hasher.0 {
            Function::Sha1(hasher) => hasher.finalize().as_slice().into(),
            Function::Sha256(hasher) => hasher.finalize().as_slice().into(),
            Function::Sha384(hasher) => hasher.finalize().as_slice().into(),
            Function::Sha512(hasher) => hasher.finalize().as_slice().into(),
        };
        if bytes == self.bytes { Ok(()) } else { Err(Checksum { algorithm: self.algorithm, bytes }) }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.algorithm_name(), self.hex())
    }
}

/// A hash that is being computed.
#[derive(Debug, Clone)]
pub struct Hasher(Function);

#[derive(Debug, Clone)]
enum Function {
    Sha1(Sha1),
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Function::Sha1(hasher) => hasher.update(bytes),
            Function::Sha256(hasher) => hasher.update(bytes),
            Function::Sha384(hasher) => hasher.update(bytes),
            Function::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// All that can be read, and how much that is in bytes.
    pub fn read_all(mut self, reader: &mut impl Read) -> io::Result<(Hasher, u64)> {
        let (mut buffer, mut length) = (vec![0; 256 * 1024], 0);
        loop {
            match reader.read(&mut buffer)? {
                0 => return Ok((self, length)),
                count => {
                    self.update(&buffer[..count]);
                    length += count as u64;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_of_one_checksum() {
        let hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let one = Checksum::from_hex("sha256", hex).unwrap();
        assert_eq!(Checksum::from_integrity("sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="), Some(one.clone()));
        assert_eq!(one.to_string(), format!("sha256-{hex}"));
        assert_eq!(one.integrity(), "sha256-LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=");
        let hash = |text: &str| {
            let mut hasher = one.hasher();
            hasher.update(text.as_bytes());
            one.compare(hasher)
        };
        assert_eq!(hash("hello"), Ok(()));
        assert!(hash("hullo").is_err_and(|other| other.algorithm == Algorithm::Sha256));
    }

    #[test]
    fn the_strongest_counts_and_what_is_malformed_does_not() {
        let sha1 = format!("sha1-{}", STANDARD.encode([1; 20]));
        let sha512 = format!("sha512-{}?x", STANDARD.encode([5; 64]));
        let of = |text: &str| Checksum::from_integrity(text).map(|checksum| checksum.algorithm);
        assert_eq!(of(&format!("{sha512} {sha1}")), Some(Algorithm::Sha512));
        assert_eq!(of(&format!("md5-AAAA sha512-short {sha1}")), Some(Algorithm::Sha1));
        for wrong in ["", "sha512", "sha512-", "sha512-!", "md5-AAAA"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        for (algorithm, digits) in [("md5", "00"), ("sha256", "00"), ("sha256", "zz"), ("sha1", &"é".repeat(20))] {
            assert_eq!(Checksum::from_hex(algorithm, digits), None);
        }
    }
}
