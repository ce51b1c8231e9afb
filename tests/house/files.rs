//! The source files of a crate, without their tests.

use std::fs;
use std::path::Path;

use crate::uses::paths;

/// All crates but this one.
pub(crate) const CRATES: [&str; 9] =
    ["schemas", "store", "download", "remote", "packages", "engine", "guest-agent", "images", "server"];

/// One file.
pub(crate) struct SourceFile {
    /// Its module, from the crate's root, which has an empty one.
    pub(crate) module: Vec<String>,
    /// What is in it, but its tests and comments.
    pub(crate) code: String,
}

impl SourceFile {
    /// The modules of those of these files that it uses.
    pub(crate) fn uses<'f>(&self, files: &'f [SourceFile]) -> impl Iterator<Item = &'f Vec<String>> {
        let used = |path: &Vec<String>| {
            // The file of the longest beginning is the one that is meant; what the root or a folder names may be anybody's.
            let modules = files.iter().map(|file| &file.module).filter(|module| path.starts_with(module));
            modules.max_by_key(|module| module.len())
        };
        let used: Vec<_> = paths(&self.code).iter().filter_map(used).filter(|used| **used != self.module).collect();
        used.into_iter()
    }
}

/// Those of a crate.
pub(crate) fn files_of(root: &Path, name: &str) -> Vec<SourceFile> {
    let mut files = Vec::new();
    gather(&root.join(name).join("src"), &[], &mut files);
    files
}

fn gather(folder: &Path, above: &[String], files: &mut Vec<SourceFile>) {
    for found in fs::read_dir(folder).unwrap() {
        let path = found.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut module = above.to_vec();
        if path.is_dir() {
            module.push(stem);
            gather(&path, &module, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            if !["mod", "lib", "main"].contains(&stem.as_str()) {
                module.push(stem);
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let lines = code.lines().map(|line| line.split("//").next().unwrap());
            files.push(SourceFile { module, code: lines.collect::<Vec<_>>().join("\n") });
        }
    }
}
