//! What interpreters go through before a VM is saved, and what is short of it again before one waits in the pool, so that no
//! user's program is the first to do what it does.
//!
//! What it leaves behind in a program's sight must be harmless, such as modules that are loaded already. Nothing may draw random
//! numbers that clones would all go on from: what has to is done in a process that ends, or, in Node.js, not at all.

use sandbox_schemas::language::Language;
use sandbox_schemas::limits::{MEMORY_DEFAULT_MB, MEMORY_MAX_MB, STDERR_MAX_BYTES, STDOUT_MAX_BYTES};
use sandbox_schemas::wire::{Execute, FileWish, HostFrame, Kind};

use crate::error::VmError;
use crate::run::ONLY_RUN;
use crate::vm::Program;
use crate::wire::encode;

/// A short program: what all programs do. Every clone that waits in the pool has rehearsed it.
struct Rehearsal {
    language: Language,
    code: &'static str,
    /// What begins a comment.
    comment: &'static str,
    /// How often it is gone through before a template is saved.
    times: usize,
}

/// One for each language.
const REHEARSALS: [Rehearsal; 3] = [
    Rehearsal { language: Language::Python, code: include_str!("rehearsals/short.py"), comment: "#", times: 1 },
    // V8 begins to remember types for a function, which speeds it up, after eight calls.
    Rehearsal { language: Language::Javascript, code: include_str!("rehearsals/short.cjs"), comment: "//", times: 9 },
    Rehearsal { language: Language::Shell, code: include_str!("rehearsals/short.sh"), comment: "#", times: 1 },
];

/// Long programs: what many programs do. They are for a template to have done, with the modules that were loaded for it and the
/// code that was translated; in each clone they would take too long.
const EXERCISES: [(Language, &str); 5] = [
    (Language::Python, include_str!("rehearsals/long.py")),
    (Language::Javascript, include_str!("rehearsals/long.mjs")),
    (Language::Javascript, include_str!("rehearsals/long.ts")),
    (Language::Javascript, include_str!("rehearsals/long.tsx")),
    (Language::Shell, include_str!("rehearsals/long.sh")),
];

impl Rehearsal {
    /// As a program that no interpreter has seen yet: V8 keeps what it has compiled, and would not do so again.
    fn program(&self, round: usize) -> Result<Program, VmError> {
        program(self.language, format!("{}{} {round}\n", self.code, self.comment))
    }
}

/// What a VM goes through that will be saved.
pub(crate) fn before_saving() -> impl Iterator<Item = Result<Program, VmError>> {
    REHEARSALS.iter().flat_map(|rehearsal| (0..rehearsal.times).map(|round| rehearsal.program(round)))
}

/// What a clone goes through for these languages, whose interpreters have seen the rehearsals of the template.
pub(crate) fn in_clone(languages: &[Language], round: usize) -> impl Iterator<Item = Result<Program, VmError>> {
    let wanted = REHEARSALS.iter().filter(|rehearsal| languages.contains(&rehearsal.language));
    wanted.map(move |rehearsal| rehearsal.program(rehearsal.times + round))
}

/// What a template goes through once for these languages.
pub(crate) fn exercises(languages: &[Language]) -> impl Iterator<Item = Result<Program, VmError>> {
    let wanted = EXERCISES.iter().filter(|(language, _)| languages.contains(language));
    wanted.map(|&(language, code)| program(language, code.to_owned()))
}

/// Where the file is put that comes and goes; the shell's long rehearsal removes it.
const FILE: &str = "/tmp/rehearsal-file";

/// A file that comes, one that goes and a folder that is listed, and how many things that is.
pub(crate) fn files() -> Result<(Vec<u8>, usize), VmError> {
    let memory_bytes = MEMORY_DEFAULT_MB * 1024 * 1024;
    let wishes = [
        FileWish::Store { path: FILE.into(), executable: true },
        FileWish::Fetch { path: FILE.into(), offset: 0, length: u64::MAX, window: u64::MAX },
        FileWish::List { path: "/tmp".into(), recursive: true },
    ];
    let count = wishes.len();
    let mut frames = Vec::new();
    for (run, wish) in (1..).zip(wishes) {
        let has_input = matches!(wish, FileWish::Store { .. });
        frames.extend(encode(&HostFrame::File { run, memory_bytes, wish })?);
        if has_input {
            frames.extend(encode(&HostFrame::Input { run, bytes: b"a file\n".repeat(1000), is_last: true })?);
        }
    }
    Ok((frames, count))
}

/// The sources of it all.
pub(crate) fn sources() -> impl Iterator<Item = String> {
    let short = REHEARSALS.iter().map(|rehearsal| format!("{} times {}", rehearsal.times, rehearsal.code));
    short.chain(EXERCISES.iter().map(|(_, code)| (*code).to_owned())).chain([FILE.into()])
}

/// A program of ours, after which its interpreter waits for another.
pub(crate) fn program(language: Language, code: String) -> Result<Program, VmError> {
    program_within(MEMORY_MAX_MB, language, code)
}

/// The same with so much memory, in MiB.
pub(crate) fn program_within(memory_mb: u64, language: Language, code: String) -> Result<Program, VmError> {
    Program::new(Execute {
        run: ONLY_RUN,
        language,
        kind: Kind::Rehearsal,
        code,
        stdin: String::new(),
        env: Vec::new(),
        memory_bytes: memory_mb * 1024 * 1024,
        stdout_max: STDOUT_MAX_BYTES as u64,
        stderr_max: STDERR_MAX_BYTES as u64,
        window: u64::MAX,
    })
}
