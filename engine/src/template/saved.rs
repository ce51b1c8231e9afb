//! A template on disk: `ram`, `state`, `code` if its QEMU keeps that, `manifest.json`, and `verified.json` beside them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::environment::Omitted;
use sandbox_schemas::image::Digest;
use sandbox_schemas::template::{RamPart, TEMPLATE_FORMAT, TemplateManifest, TemplateStamp};
use sandbox_store::{At, FileError, identity, verify_once, write_json};
use sha2::{Digest as _, Sha256};

use crate::environment::Environment;
use crate::opened::{MANIFEST, Mapped, Opened, Unusable, write_mapped};
use crate::qemu::STATE_MAX_BYTES;
use crate::template::Template;

const RAM: &str = "ram";
const STATE: &str = "state";
const CODE: &str = "code";

/// How much the frequency of a host's time stamp counter may differ from the one that a template counts by. Two measurements
/// on one host differ by some parts in a million; a clone's clock is wrong by as much.
const TSC_TOLERANCE: f64 = 0.001;

/// What is known of a template besides its files.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) key: Digest,
    pub(crate) tsc_khz: u64,
    pub(crate) accelerator: Accelerator,
    pub(crate) qemu: String,
}

/// Writes the memory of an entry into an empty directory, so that it need not be kept in memory.
pub(crate) fn write_ram(folder: &Path, ram: &File) -> Result<RamPart, FileError> {
    write_mapped(&folder.join(RAM), ram)
}

/// The memory that was written.
pub(crate) fn open_ram(folder: &Path) -> Result<File, FileError> {
    let path = folder.join(RAM);
    File::open(&path).at("open", &path)
}

/// Writes all other files of an entry whose memory is there.
pub(crate) fn complete(
    folder: &Path,
    ram: RamPart,
    state: &[u8],
    code: Option<&File>,
    origin: &Origin,
    left_out: Vec<Omitted>,
) -> Result<(), FileError> {
    let code = code.map(|code| write_mapped(&folder.join(CODE), code)).transpose()?;
    let state_path = folder.join(STATE);
    let mut file = File::create_new(&state_path).at("create", &state_path)?;
    // Whatever the umask is: what others could write is not loaded.
    file.set_permissions(fs::Permissions::from_mode(0o600)).at("set the mode of", &state_path)?;
    file.write_all(state).and_then(|()| file.sync_all()).at("write", &state_path)?;
    let manifest = TemplateManifest {
        format: TEMPLATE_FORMAT,
        key: origin.key,
        ram,
        state_sha256: digest(state),
        code,
        tsc_khz: origin.tsc_khz,
        accelerator: origin.accelerator,
        left_out,
        qemu: origin.qemu.clone(),
        created_unix_seconds: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    };
    write_json(folder, MANIFEST, &manifest)
}

/// Reads an entry, and believes nothing of it that it has not seen. `copies` is for a QEMU that must not have the file.
pub(crate) fn load(
    folder: &Path,
    origin: &Origin,
    copies: bool,
    environment: Option<Arc<Environment>>,
) -> Result<Template, Unusable> {
    let entry = Opened::open(folder)?;
    let manifest: TemplateManifest = entry.manifest()?;
    if (manifest.format, manifest.key) != (TEMPLATE_FORMAT, origin.key) {
        return Err(Unusable::damaged(MANIFEST, "it is of another entry"));
    }
    if manifest.tsc_khz.abs_diff(origin.tsc_khz) as f64 > origin.tsc_khz as f64 * TSC_TOLERANCE {
        let (saved, here) = (manifest.tsc_khz, origin.tsc_khz);
        return Err(Unusable::damaged(MANIFEST, format!("it counts time by {saved} kHz, this host by {here} kHz")));
    }

    let (state_file, state_metadata) = entry.file(STATE)?;
    let ram = Mapped::open(&entry, RAM, manifest.ram)?;
    let code = manifest.code.map(|part| Mapped::open(&entry, CODE, part)).transpose()?;
    // Small enough to be hashed each time.
    let state = read_state(state_file).map_err(|error| Unusable::unread(STATE, &error))?;
    if digest(&state) != manifest.state_sha256 {
        return Err(Unusable::damaged(STATE, "its SHA-256 is not the manifest's"));
    }
    let stamp = TemplateStamp {
        ram: identity(&ram.metadata, manifest.ram.sha256),
        state: identity(&state_metadata, manifest.state_sha256),
        code: code.as_ref().map(|code| identity(&code.metadata, code.part.sha256)),
    };
    verify_once(folder, &stamp, || [Some(&ram), code.as_ref()].into_iter().flatten().try_for_each(Mapped::verify))?;
    Ok(Template {
        ram: ram.for_qemu(copies)?,
        state: state.into(),
        state_sha256: manifest.state_sha256,
        code: code.map(|code| code.for_qemu(copies)).transpose()?,
        memory_mb: manifest.ram.size_bytes / (1024 * 1024),
        tsc_khz: manifest.tsc_khz,
        environment,
        left_out: manifest.left_out,
        _lease: Some(entry.lease),
    })
}

fn read_state(file: File) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    file.take(STATE_MAX_BYTES as u64 + 1).read_to_end(&mut state)?;
    Ok(state)
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use crate::template::ram;

    const SIZE: u64 = 4 * 1024 * 1024;

    fn origin() -> Origin {
        Origin { key: Digest([7; 32]), tsc_khz: 2_000_000, accelerator: Accelerator::Tcg, qemu: "QEMU".into() }
    }

    fn entry() -> (tempfile::TempDir, PathBuf) {
        entry_with(true)
    }

    fn entry_with(has_code: bool) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entry");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let ram = ram::create(SIZE).unwrap();
        ram.write_all_at(&[9; 10_000], 8192).unwrap();
        let code = has_code.then(|| {
            let code = ram::create(SIZE / 2).unwrap();
            code.write_all_at(&[3; 20_000], 4096).unwrap();
            code
        });
        let part = write_ram(&path, &ram).unwrap();
        complete(&path, part, &[5; 1000], code.as_ref(), &origin(), Vec::new()).unwrap();
        (folder, path)
    }

    #[track_caller]
    fn check(path: &Path, origin: &Origin, expected: &str) {
        let found = load(path, origin, false, None).map_or_else(|error| error.to_string(), |_| "loaded".into());
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn what_was_written_is_loaded_by_file_or_as_a_copy() {
        let (_folder, path) = entry();
        for copies in [false, true, false] {
            let template = load(&path, &origin(), copies, None).unwrap();
            let ram = File::from(template.ram.try_clone().unwrap());
            let mut bytes = [0; 10_000];
            ram.read_exact_at(&mut bytes, 8192).unwrap();
            assert_eq!(bytes, [9; 10_000]);
            assert_eq!((ram.metadata().unwrap().len(), template.memory_mb), (SIZE, 4));
            assert_eq!(&*template.state, [5; 1000]);
            let code = File::from(template.code().load.unwrap().try_clone().unwrap());
            code.read_exact_at(&mut bytes, 4096).unwrap();
            assert_eq!((bytes, code.metadata().unwrap().len()), ([3; 10_000], SIZE / 2));
        }
    }

    #[test]
    fn there_need_be_no_code() {
        let (_folder, path) = entry_with(false);
        assert!(!path.join(CODE).exists());
        assert!(load(&path, &origin(), false, None).unwrap().code().load.is_none());
    }

    #[test]
    fn a_changed_byte_in_any_file_is_found() {
        for name in [RAM, STATE, CODE, MANIFEST] {
            for at in [0, 9000] {
                let (_folder, path) = entry();
                load(&path, &origin(), false, None).unwrap();
                let file = File::options().read(true).write(true).open(path.join(name)).unwrap();
                let at = at.min(file.metadata().unwrap().len() / 2);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
                // In the middle of the manifest is what another file hashes to.
                check(&path, &origin(), name.trim_end_matches(".json"));
            }
        }
    }

    #[test]
    fn a_truncated_or_missing_file_is_found() {
        for name in [RAM, STATE, CODE, MANIFEST] {
            let (_folder, path) = entry();
            let file = File::options().write(true).open(path.join(name)).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            check(&path, &origin(), name);
            fs::remove_file(path.join(name)).unwrap();
            check(&path, &origin(), name);
        }
        let (folder, path) = entry();
        fs::remove_dir_all(&path).unwrap();
        check(&path, &origin(), "there is none");
        drop(folder);
    }

    #[test]
    fn a_fifo_in_place_of_a_file_is_damage_and_holds_nothing_up() {
        for name in [RAM, STATE, CODE, MANIFEST, "verified.json"] {
            let (_folder, path) = entry();
            load(&path, &origin(), false, None).unwrap();
            fs::remove_file(path.join(name)).unwrap();
            nix::unistd::mkfifo(&path.join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
            match load(&path, &origin(), false, None) {
                Ok(_) => assert_eq!(name, "verified.json"),
                Err(Unusable::Damaged(reason)) => assert!(reason.contains(name), "{reason}"),
                Err(other) => panic!("{name}: {other:?}"),
            }
        }
        let (_folder, path) = entry();
        fs::remove_dir_all(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(load(&path, &origin(), false, None), Err(Unusable::Damaged(_))));
    }

    #[test]
    fn what_is_foreign_is_refused() {
        let (_folder, path) = entry();
        check(&path, &Origin { key: Digest([8; 32]), ..origin() }, "of another entry");
        check(&path, &Origin { tsc_khz: 2_100_000, ..origin() }, "this host by 2100000 kHz");
        check(&path, &Origin { tsc_khz: 2_000_100, ..origin() }, "loaded");
        let set_mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set_mode(&path, 0o755);
        check(&path, &origin(), "entry is open to others than its owner (mode 755)");
        set_mode(&path, 0o700);
        for name in [RAM, STATE, CODE, MANIFEST] {
            set_mode(&path.join(name), 0o664);
            check(&path, &origin(), &format!("{name} can be written by others than its owner (mode 664)"));
            set_mode(&path.join(name), 0o644);
        }
        let shelf = path.parent().unwrap();
        set_mode(shelf, 0o777);
        check(&path, &origin(), "can be written by others than its owner (mode 777)");
        set_mode(shelf, 0o700);
        check(&path, &origin(), "loaded");
        let manifest = fs::read_to_string(path.join(MANIFEST)).unwrap();
        fs::write(path.join(MANIFEST), manifest.replace("\"format\": 1", "\"format\": 2")).unwrap();
        check(&path, &origin(), "of another entry");
    }

    #[test]
    fn an_entry_in_use_cannot_be_locked_by_others() {
        let (_folder, path) = entry();
        let template = load(&path, &origin(), false, None).unwrap();
        let other = File::open(&path).unwrap();
        assert!(other.try_lock().is_err());
        drop(template);
        assert!(other.try_lock().is_ok());
    }
}
