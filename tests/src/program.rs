//! The program that is tested: as `cargo build` has made it, beside the tests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// Its name.
const NAME: &str = "sandbox-mcp";

/// The folder that Cargo builds in, of one profile.
pub fn target() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    // A test lies in its `deps`.
    tests.ancestors().nth(2).unwrap().to_owned()
}

/// The program. Cargo builds it for tests of its own package only, so it is `make test` that does so for these; one that is
/// older than what it is made of is not taken, since all that is found out about it would be of yesterday.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = target().join(NAME);
        if let Err(reason) = check(&program) {
            panic!(
                "{}: {reason}; `cargo build --workspace --all-targets --release --locked` builds it",
                program.display()
            );
        }
        program
    })
}

fn check(program: &Path) -> Result<(), String> {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let built = modified(program).map_err(|error| error.to_string())?;
    let sources =
        std::fs::read_to_string(program.with_extension("d")).map_err(|error| format!("its sources: {error}"))?;
    // What Cargo has made itself on the way is made again by whoever builds something else. That is the guest's agent, of which only that
    // is named.
    let (own, agent) = (target(), Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-agent"));
    let named = sources_in(&sources).into_iter().filter(|source| !source.starts_with(&own));
    let of_agent = ["src", "runners"].into_iter().flat_map(|folder| files_in(&agent.join(folder)));
    let is_newer = |source: &PathBuf| modified(source).unwrap_or(SystemTime::UNIX_EPOCH) > built;
    match named.chain(of_agent).find(is_newer) {
        Some(source) => Err(format!("it is older than {}", source.display())),
        None => Ok(()),
    }
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|found| found.unwrap().path()).collect()
}

/// What a line of a makefile, as Cargo writes it, says that something is made of.
fn sources_in(rule: &str) -> Vec<PathBuf> {
    let rest = rule.lines().next().and_then(|line| line.split_once(": ")).map_or("", |(_, rest)| rest);
    // A space within a name is written with a backslash.
    let rest = rest.replace("\\ ", "\0");
    rest.split(' ').map(|source| PathBuf::from(source.replace('\0', " "))).collect()
}
