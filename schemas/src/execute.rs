//! The input of `execute_code`, and what makes one valid.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::environment::EnvironmentId;
use crate::files::{FileInput, check_files, check_outputs};
use crate::invalid::{InvalidInput, check_range, too_large};
use crate::language::Language;
use crate::lenient;
use crate::limits;

/// Arguments of the tool `execute_code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecuteInput {
    /// Language of `code`; TypeScript is `javascript`, bash is `shell`.
    #[serde(deserialize_with = "lenient::language")]
    #[cfg_attr(feature = "json-schema", schemars(schema_with = "language_schema"))]
    pub language: Language,

    /// The program, as a script; at most 1 MiB. Example: `print(6 * 7)`
    #[serde(deserialize_with = "lenient::program")]
    pub code: String,

    /// Seconds that the program may run, 30 if not given; then it is interrupted and killed. In the background 3600, and up to 86400.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::maybe_integer")]
    #[cfg_attr(
        feature = "json-schema",
        schemars(with = "u64", range(min = limits::TIMEOUT_MIN_SECONDS, max = limits::BACKGROUND_TIMEOUT_MAX_SECONDS))
    )]
    pub timeout_seconds: Option<u64>,

    /// Environment variables of the program, at most 256. Example: `["MODE=test"]`
    // Published as a list: what converts schemas for strict models has no form for an object of any names. Such an object is
    // understood as well.
    #[serde(default, deserialize_with = "lenient::variables")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Vec<String>"))]
    pub env: BTreeMap<String, String>,

    /// What the program reads from its standard input, at most 4 MiB. Example: `1,2,3`
    #[serde(default)]
    pub stdin: String,

    /// Memory for the program and the files it writes, in MiB, 512 if not given. Example: `1024`
    #[serde(default = "default_memory_mb", deserialize_with = "lenient::integer")]
    #[cfg_attr(
        feature = "json-schema",
        schemars(range(min = limits::MEMORY_MIN_MB, max = limits::MEMORY_MAX_MB))
    )]
    pub memory_mb: u64,

    /// Packages that a `python` or `javascript` program needs, installed now if they are not yet. Example: `["pandas", "requests>=2.32"]`
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::texts")]
    pub packages: Vec<String>,

    /// Instead of `packages`: what `install_packages` has returned. Example: `python-0123456789abcdef`
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub environment_id: Option<String>,

    /// Where to run: what `open_session` has returned. Without it, in a fresh VM that ends with the program.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "lenient::absent_if_empty")]
    #[cfg_attr(feature = "json-schema", schemars(with = "String"))]
    pub session_id: Option<String>,

    /// Whether to answer at once with a `run_id`, and let the program run on as a process of its own: servers, watchers, long work.
    #[serde(default)]
    pub background: bool,

    /// Files that the program finds. Example: `[{"path": "in.csv", "text": "a,b"}]`
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::list")]
    pub files: Vec<FileInput>,

    /// Files to return when it has ended, by patterns. Example: `["plot.png", "out/**/*.csv"]`
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient::texts")]
    pub outputs: Vec<String>,
}

impl ExecuteInput {
    /// The least that a caller must say; the rest has its defaults.
    pub fn new(language: Language, code: impl Into<String>) -> Self {
        ExecuteInput {
            language,
            code: code.into(),
            timeout_seconds: None,
            env: BTreeMap::new(),
            stdin: String::new(),
            memory_mb: default_memory_mb(),
            packages: Vec::new(),
            environment_id: None,
            session_id: None,
            background: false,
            files: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// How long the program may run, in seconds.
    pub fn timeout_seconds(&self) -> u64 {
        self.timeout_seconds.unwrap_or(match self.background {
            true => limits::BACKGROUND_TIMEOUT_DEFAULT_SECONDS,
            false => limits::TIMEOUT_DEFAULT_SECONDS,
        })
    }

    /// Checks every field and names the first that is wrong.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        check_code(&self.code)?;
        check_notebook(self.language, &self.code)?;
        let longest =
            if self.background { limits::BACKGROUND_TIMEOUT_MAX_SECONDS } else { limits::TIMEOUT_MAX_SECONDS };
        check_range("timeout_seconds", self.timeout_seconds(), limits::TIMEOUT_MIN_SECONDS, longest)?;
        check_range("memory_mb", self.memory_mb, limits::MEMORY_MIN_MB, limits::MEMORY_MAX_MB)?;
        if self.stdin.len() > limits::STDIN_MAX_BYTES {
            return Err(too_large("stdin", self.stdin.len(), limits::STDIN_MAX_BYTES));
        }
        check_env(&self.env)?;
        check_packages(&self.packages)?;
        check_files(&self.files)?;
        check_outputs(&self.outputs)?;
        if self.background && !self.outputs.is_empty() {
            let message = "cannot be given together with background; read_file reads a session's files at any time";
            return Err(InvalidInput::new("outputs", message));
        }
        check_environment(&self.packages, self.environment_id.as_deref())
    }
}

/// Packages by name or by what has them.
pub(crate) fn check_environment(packages: &[String], environment_id: Option<&str>) -> Result<(), InvalidInput> {
    match environment_id {
        Some(_) if !packages.is_empty() => Err(InvalidInput::new(
            "environment_id",
            "cannot be given together with packages; install the packages that are missing with install_packages",
        )),
        Some(id) => match id.parse::<EnvironmentId>() {
            Ok(_) => Ok(()),
            Err(reason) => Err(InvalidInput::new("environment_id", format!("is {id:?}, but {reason}"))),
        },
        None => Ok(()),
    }
}

fn check_code(code: &str) -> Result<(), InvalidInput> {
    if code.len() > limits::CODE_MAX_BYTES {
        return Err(too_large("code", code.len(), limits::CODE_MAX_BYTES));
    }
    if let Some(at) = code.find('\0') {
        return Err(InvalidInput::new("code", format!("has a NUL byte at offset {at}; remove it or escape it")));
    }
    if code.trim().is_empty() {
        return Err(InvalidInput::new("code", "is empty; give at least one statement (1 byte to 1 MiB)"));
    }
    Ok(())
}

/// A notebook's commands are in no program, and what a model means by them is an argument here.
fn check_notebook(language: Language, code: &str) -> Result<(), InvalidInput> {
    let first = code.trim_start().lines().next().unwrap_or_default();
    let is_command = language == Language::Python && first.starts_with(['!', '%']);
    if !is_command {
        return Ok(());
    }
    let is_installer = ["pip", "conda", "uv"].iter().any(|tool| first.contains(tool));
    let advice = match first.starts_with('!') {
        _ if is_installer => "name what it needs in packages instead",
        true => "run it with language shell, or with subprocess",
        false => "leave it out",
    };
    Err(InvalidInput::new(
        "code",
        format!("begins with {first:.60?}, which is a notebook's and not Python's; {advice}"),
    ))
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), InvalidInput> {
    if env.len() > limits::ENV_MAX_VARIABLES {
        let message = format!("has {} variables; at most {} are allowed", env.len(), limits::ENV_MAX_VARIABLES);
        return Err(InvalidInput::new("env", message));
    }
    for (name, value) in env {
        // A name can be anything that a client sent, so it is shown quoted and escaped.
        if name.is_empty() {
            return Err(InvalidInput::new("env", "has a variable with an empty name"));
        }
        if name.contains(['=', '\0']) {
            let message = format!("has the name {name:?}; a name must not contain '=' or a NUL byte");
            return Err(InvalidInput::new("env", message));
        }
        if value.contains('\0') {
            return Err(InvalidInput::new("env", format!("has a NUL byte in the value of {name:?}")));
        }
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if bytes > limits::ENV_MAX_BYTES {
        return Err(too_large("env", bytes, limits::ENV_MAX_BYTES));
    }
    Ok(())
}

/// How many packages may be asked for at once.
pub(crate) fn check_packages(packages: &[String]) -> Result<(), InvalidInput> {
    if packages.len() <= limits::PACKAGES_MAX {
        return Ok(());
    }
    let message = format!("has {} names; at most {} are allowed", packages.len(), limits::PACKAGES_MAX);
    Err(InvalidInput::new("packages", message))
}

fn default_memory_mb() -> u64 {
    limits::MEMORY_DEFAULT_MB
}

/// One name each. Their other names are understood, and would only have a model choose.
#[cfg(feature = "json-schema")]
pub(crate) fn language_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names = Language::ALL.map(Language::name);
    schemars::json_schema!({ "type": "string", "enum": names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut ExecuteInput), expected: &str) {
        let mut input = ExecuteInput::new(Language::Python, "print(1)");
        change(&mut input);
        let found = input.validate().map_or_else(|error| error.to_string(), |()| "valid".into());
        assert_eq!(found, expected);
    }

    #[test]
    fn each_field_is_checked_and_named() {
        check(|_| {}, "valid");
        check(|i| i.code = String::new(), "code: is empty; give at least one statement (1 byte to 1 MiB)");
        check(|i| i.code = " \n\t".into(), "code: is empty; give at least one statement (1 byte to 1 MiB)");
        check(|i| i.code = "a\0b".into(), "code: has a NUL byte at offset 1; remove it or escape it");
        check(|i| i.code = "#".repeat(1024 * 1024), "valid");
        check(|i| i.code = "#".repeat(1024 * 1024 + 1), "code: is 1048577 bytes; at most 1048576 bytes are allowed");
        check(|i| i.timeout_seconds = Some(0), "timeout_seconds: is 0; must be between 1 and 300");
        check(|i| i.timeout_seconds = Some(301), "timeout_seconds: is 301; must be between 1 and 300");
        check(|i| i.memory_mb = 63, "memory_mb: is 63; must be between 64 and 2048");
        check(|i| i.memory_mb = 2049, "memory_mb: is 2049; must be between 64 and 2048");
        check(
            |i| i.stdin = "x".repeat(limits::STDIN_MAX_BYTES + 1),
            "stdin: is 4194305 bytes; at most 4194304 bytes are allowed",
        );
    }

    #[test]
    fn a_notebooks_commands_are_answered_with_what_is_meant() {
        let begins = |line: &str| format!("code: begins with {line:?}, which is a notebook's and not Python's; ");
        let cases = [
            ("!pip install pandas", "name what it needs in packages instead"),
            ("%pip install pandas", "name what it needs in packages instead"),
            ("!ls -l", "run it with language shell, or with subprocess"),
            ("%matplotlib inline", "leave it out"),
        ];
        for (line, advice) in cases {
            check(|i| i.code = format!("\n{line}\nprint(1)"), &(begins(line) + advice));
        }
        check(|i| i.code = "print(1)\n% 2".into(), "valid");
        check(|i| (i.language, i.code) = (Language::Shell, "! false".into()), "valid");
    }

    #[test]
    fn packages_are_counted() {
        check(|i| i.packages = vec!["a".into(); 50], "valid");
        check(|i| i.packages = vec!["a".into(); 51], "packages: has 51 names; at most 50 are allowed");
    }

    #[test]
    fn each_fault_of_an_environment_is_named() {
        check(|i| drop(i.env.insert("A".into(), "b=c".into())), "valid");
        check(|i| drop(i.env.insert(String::new(), "x".into())), "env: has a variable with an empty name");
        check(
            |i| drop(i.env.insert("A=B".into(), "x".into())),
            "env: has the name \"A=B\"; a name must not contain '=' or a NUL byte",
        );
        check(
            |i| drop(i.env.insert("A\0".into(), "x".into())),
            "env: has the name \"A\\0\"; a name must not contain '=' or a NUL byte",
        );
        check(|i| drop(i.env.insert("A".into(), "\0".into())), "env: has a NUL byte in the value of \"A\"");
        check(
            |i| i.env.extend((0..257).map(|n| (format!("V{n}"), String::new()))),
            "env: has 257 variables; at most 256 are allowed",
        );
        check(
            |i| drop(i.env.insert("A".into(), "x".repeat(limits::ENV_MAX_BYTES))),
            "env: is 131075 bytes; at most 131072 bytes are allowed",
        );
    }

    #[test]
    fn raw_means_shell_and_defaults_are_filled_in() {
        let input: ExecuteInput = serde_json::from_str(r#"{"language":"raw","code":"ls"}"#).unwrap();
        assert_eq!(input, ExecuteInput::new(Language::Shell, "ls"));
    }

    #[test]
    fn a_number_without_a_fraction_is_an_integer() {
        let read = |number: &str| {
            let json = format!(r#"{{"language":"python","code":"1","timeout_seconds":{number},"memory_mb":{number}}}"#);
            let input = serde_json::from_str::<ExecuteInput>(&json).map_err(|error| error.to_string())?;
            assert_eq!(input.timeout_seconds, Some(input.memory_mb));
            Ok::<_, String>(input.memory_mb)
        };
        for (number, value) in [("100", 100), ("100.0", 100), ("1e2", 100), ("0.0", 0), ("-0.0", 0)] {
            assert_eq!(read(number), Ok(value), "{number}");
        }
        for number in ["30.5", "-1", "-1.0", "1e30", "\"ten\"", "null", "true"] {
            assert!(read(number).unwrap_err().contains("expected an integer"), "{number}");
        }
    }
}
