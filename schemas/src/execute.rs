//! The input of `execute_code`, and what makes one valid.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::environment::EnvironmentId;
use crate::language::Language;
use crate::limits;

/// Arguments of the tool `execute_code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "json-schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecuteInput {
    /// Language of `code`: `python` (3.13), `javascript` (Node.js LTS; TypeScript and top-level await work) or `shell`
    /// (bash). `raw` is an alias of `shell`.
    #[cfg_attr(feature = "json-schema", schemars(schema_with = "language_schema"))]
    pub language: Language,

    /// The program, run as a script in a fresh VM with `/workspace` as its working directory. 1 byte to 1 MiB of UTF-8
    /// without NUL bytes.
    // JSON Schema counts characters. A string has at most as many as it has bytes, so nothing valid is refused by it;
    // the limit in bytes is checked by `validate`.
    #[cfg_attr(feature = "json-schema", schemars(length(min = 1, max = limits::CODE_MAX_BYTES)))]
    pub code: String,

    /// Seconds that the program may run; it is interrupted, then killed. Starting the VM does not count.
    #[serde(default = "default_timeout_seconds", deserialize_with = "integer")]
    #[cfg_attr(
        feature = "json-schema",
        schemars(range(min = limits::TIMEOUT_MIN_SECONDS, max = limits::TIMEOUT_MAX_SECONDS))
    )]
    pub timeout_seconds: u64,

    /// Environment variables of the program, added to the sandbox's own. At most 256 of 128 KiB in all.
    #[serde(default)]
    #[cfg_attr(feature = "json-schema", schemars(extend("maxProperties" = limits::ENV_MAX_VARIABLES)))]
    pub env: BTreeMap<String, String>,

    /// What the program reads from its standard input; end of file follows. At most 4 MiB.
    #[serde(default)]
    #[cfg_attr(feature = "json-schema", schemars(length(max = limits::STDIN_MAX_BYTES)))]
    pub stdin: String,

    /// Memory that the program and the files it writes may use together, in MiB.
    #[serde(default = "default_memory_mb", deserialize_with = "integer")]
    #[cfg_attr(
        feature = "json-schema",
        schemars(range(min = limits::MEMORY_MIN_MB, max = limits::MEMORY_MAX_MB))
    )]
    pub memory_mb: u64,

    /// Packages that the program needs, as `install_packages` takes them; installed now if they are not yet. For `python` and
    /// `javascript`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "json-schema", schemars(length(max = limits::PACKAGES_MAX)))]
    pub packages: Vec<String>,

    /// An environment that `install_packages` has returned; its packages are there whatever the language is. Not together with
    /// `packages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "json-schema", schemars(with = "Option<String>"))]
    pub environment_id: Option<String>,
}

/// A field of an input that does not satisfy its limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct InvalidInput {
    /// Name of the field, as in the schema.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl InvalidInput {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        InvalidInput { field: field.into(), message: message.into() }
    }
}

impl ExecuteInput {
    /// The least that a caller must say; the rest has its defaults.
    pub fn new(language: Language, code: impl Into<String>) -> Self {
        ExecuteInput {
            language,
            code: code.into(),
            timeout_seconds: default_timeout_seconds(),
            env: BTreeMap::new(),
            stdin: String::new(),
            memory_mb: default_memory_mb(),
            packages: Vec::new(),
            environment_id: None,
        }
    }

    /// Checks every field and names the first that is wrong.
    pub fn validate(&self) -> Result<(), InvalidInput> {
        check_code(&self.code)?;
        check_range("timeout_seconds", self.timeout_seconds, limits::TIMEOUT_MIN_SECONDS, limits::TIMEOUT_MAX_SECONDS)?;
        check_range("memory_mb", self.memory_mb, limits::MEMORY_MIN_MB, limits::MEMORY_MAX_MB)?;
        if self.stdin.len() > limits::STDIN_MAX_BYTES {
            return Err(too_large("stdin", self.stdin.len(), limits::STDIN_MAX_BYTES));
        }
        check_env(&self.env)?;
        match &self.environment_id {
            Some(_) if !self.packages.is_empty() => Err(InvalidInput::new(
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
}

/// An integer as JSON Schema has it: `30`, `30.0` and `3e1` are the same number. Some clients write all numbers as floats.
fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Integer;

    impl Visitor<'_> for Integer {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an integer")
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
            Ok(value)
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
            u64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<u64, E> {
            // Below that every integer has a float of its own. No limit is anywhere near.
            const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;
            let is_integer = value.fract() == 0.0 && (0.0..EXACT_BELOW).contains(&value);
            if is_integer { Ok(value as u64) } else { Err(E::invalid_value(Unexpected::Float(value), &self)) }
        }
    }
    deserializer.deserialize_any(Integer)
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

fn check_range(field: &str, value: u64, min: u64, max: u64) -> Result<(), InvalidInput> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(InvalidInput::new(field, format!("is {value}; must be between {min} and {max}")))
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

fn too_large(field: &str, bytes: usize, max: usize) -> InvalidInput {
    InvalidInput::new(field, format!("is {bytes} bytes; at most {max} bytes are allowed"))
}

fn default_timeout_seconds() -> u64 {
    limits::TIMEOUT_DEFAULT_SECONDS
}

fn default_memory_mb() -> u64 {
    limits::MEMORY_DEFAULT_MB
}

/// The names that are accepted, the alias among them: schemars knows nothing of serde's aliases.
#[cfg(feature = "json-schema")]
fn language_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let names: Vec<&str> = Language::ALL.iter().map(|language| language.name()).chain(["raw"]).collect();
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
        check(|i| i.timeout_seconds = 0, "timeout_seconds: is 0; must be between 1 and 300");
        check(|i| i.timeout_seconds = 301, "timeout_seconds: is 301; must be between 1 and 300");
        check(|i| i.memory_mb = 63, "memory_mb: is 63; must be between 64 and 2048");
        check(|i| i.memory_mb = 2049, "memory_mb: is 2049; must be between 64 and 2048");
        check(
            |i| i.stdin = "x".repeat(limits::STDIN_MAX_BYTES + 1),
            "stdin: is 4194305 bytes; at most 4194304 bytes are allowed",
        );
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
            assert_eq!(input.timeout_seconds, input.memory_mb);
            Ok::<_, String>(input.memory_mb)
        };
        for (number, value) in [("100", 100), ("100.0", 100), ("1e2", 100), ("0.0", 0), ("-0.0", 0)] {
            assert_eq!(read(number), Ok(value), "{number}");
        }
        for number in ["30.5", "-1", "-1.0", "1e30", "\"30\"", "null", "true"] {
            assert!(read(number).unwrap_err().contains("expected an integer"), "{number}");
        }
    }
}
