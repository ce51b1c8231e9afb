//! The initial RAM file system: the guest agent, which this binary carries, as `/init`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::LazyLock;

use cpio::newc::{self, Builder};
use sandbox_schemas::image::{Component, Digest};
use sandbox_store::{At, KeyHasher};

use crate::error::BuildError;
use crate::host_tool::HostTool;
use crate::recipe::{Ingredients, Recipe, Workshop};

/// Changes when the code below does something else with the same inputs.
const RECIPE_VERSION: &[u8] = b"1";
/// The agent, built by build.rs from the same tree as this binary, so that the two ends of the wire always match.
static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sandbox-guest-agent"));

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// How `agent.cpio` is made.
pub(crate) struct Agent;

impl Recipe for Agent {
    fn component(&self) -> Component {
        Component::Agent
    }

    fn key(&self) -> Digest {
        // It is asked for several times at each start of the server, and the agent does not change meanwhile.
        static KEY: LazyLock<Digest> = LazyLock::new(|| key(RECIPE_VERSION, AGENT));
        *KEY
    }

    fn tools(&self) -> &'static [HostTool] {
        &[]
    }

    fn make(&self, _work: &Path, artefact: &Path, _workshop: &Workshop<'_>) -> Result<Ingredients, BuildError> {
        let file = File::create(artefact).at("create", artefact)?;
        let mut file = BufWriter::new(file);
        write_archive(&mut file, AGENT).and_then(|()| file.flush()).at("write", artefact)?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Ingredients { packages: [("sandbox-guest-agent".to_owned(), version)].into(), ..Ingredients::default() })
    }
}

fn key(recipe_version: &[u8], agent: &[u8]) -> Digest {
    KeyHasher::new("agent").field("recipe", recipe_version).field("agent", agent).finish()
}

/// What PID 1 finds: itself, a console for its first words, and directories to mount on.
fn write_archive(to: &mut impl Write, agent: &[u8]) -> std::io::Result<()> {
    let mut inode = 0;
    let mut add = |entry: Builder, content: &[u8]| {
        inode += 1;
        let mut writer = entry.ino(inode).nlink(1).write(&mut *to, content.len() as u32);
        writer.write_all(content)?;
        writer.finish().map(|_| ())
    };
    for name in ["dev", "proc", "sys", "newroot"] {
        add(Builder::new(name).mode(DIRECTORY | 0o755), &[])?;
    }
    add(Builder::new("dev/console").mode(CHARACTER_DEVICE | 0o600).rdev_major(5).rdev_minor(1), &[])?;
    add(Builder::new("init").mode(REGULAR | 0o755), agent)?;
    newc::trailer(to).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::newc::Reader;

    use super::{AGENT, RECIPE_VERSION, key, write_archive};

    #[test]
    fn archive_reads_back() {
        let mut archive = Vec::new();
        write_archive(&mut archive, b"\x7fELF of odd length").unwrap();
        let mut found = Vec::new();
        let mut input = &archive[..];
        loop {
            let mut reader = Reader::new(input).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            let entry = reader.entry();
            found.push((entry.name().to_owned(), entry.mode(), (entry.rdev_major(), entry.rdev_minor()), content));
            input = reader.finish().unwrap();
        }
        let directory = |name: &str| (name.to_owned(), 0o040_755, (0, 0), Vec::new());
        assert_eq!(found[..4], ["dev", "proc", "sys", "newroot"].map(directory));
        assert_eq!(found[4], ("dev/console".to_owned(), 0o020_600, (5, 1), Vec::new()));
        assert_eq!(found[5], ("init".to_owned(), 0o100_755, (0, 0), b"\x7fELF of odd length".to_vec()));
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn agent_is_a_static_executable() {
        assert!(AGENT.starts_with(b"\x7fELF\x02"));
        // The program headers of a 64-bit ELF file: none of them may ask for an interpreter.
        const PT_INTERP: usize = 3;
        let number =
            |at: usize, length: usize| AGENT[at..at + length].iter().rev().fold(0, |n, b| n << 8 | *b as usize);
        let (offset, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        assert!(count > 0);
        assert!((0..count).all(|header| number(offset + header * size, 4) != PT_INTERP));
    }

    #[test]
    fn every_input_is_in_the_key() {
        let now = key(RECIPE_VERSION, b"agent");
        assert_ne!(now, key(b"0", b"agent"));
        assert_ne!(now, key(RECIPE_VERSION, b"another"));
    }
}
