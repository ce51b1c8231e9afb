//! Where settings come from, and which of it holds.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::settings::flags::Flags;
use crate::settings::given::{CONFIG_VARIABLE, Given, Origin, SettingError};
use crate::settings::value::Value;
use crate::settings::{SPECS, Setting, VARIABLE_PREFIX, file};

/// Largest file of settings that is read, in bytes.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

fn read_settings(path: &Path) -> std::io::Result<String> {
    let text = sandbox_store::read_regular(path, FILE_MAX_BYTES)?;
    String::from_utf8(text).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

/// The file that was looked for.
#[derive(Debug, Clone)]
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) exists: bool,
}

/// All that was written, the winners first.
#[derive(Debug)]
pub(crate) struct Sources {
    given: Vec<Given>,
    pub(crate) file: Option<ConfigFile>,
    pub(crate) unknown_variables: Vec<String>,
}

impl Sources {
    /// Reads them all. The file is the one that a flag or a variable names, and must be there then; else `default_file`.
    pub(crate) fn gather(
        flags: &Flags,
        variables: impl Iterator<Item = (OsString, OsString)>,
        default_file: Option<PathBuf>,
    ) -> Result<Sources, SettingError> {
        let mut given = flags.given.clone();
        let mut named_file = flags.config.clone();
        let mut unknown_variables = Vec::new();
        for (name, value) in variables {
            let name = name.to_string_lossy();
            // Many places in which variables are written can only empty one that is inherited.
            if !name.starts_with(VARIABLE_PREFIX) || value.is_empty() {
                continue;
            }
            if name == CONFIG_VARIABLE {
                named_file.get_or_insert_with(|| value.into());
            } else if let Some(spec) = SPECS.iter().find(|spec| spec.variable() == name) {
                given.push(Given::text(spec.key, value, Origin::Variable(name.into_owned())));
            } else {
                // Not an error, as in a file: the environment is not ours alone. Kubernetes, for one, sets
                // SANDBOX_MCP_PORT where a service has our name.
                unknown_variables.push(name.into_owned());
            }
        }
        let must_exist = named_file.is_some();
        let file = match named_file.or(default_file) {
            None => None,
            Some(path) => match read_settings(&path) {
                Ok(text) => {
                    given.extend(file::parse(&path, &text)?);
                    Some(ConfigFile { path, exists: true })
                }
                Err(fault) if fault.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                    Some(ConfigFile { path, exists: false })
                }
                Err(source) => return Err(SettingError::Unreadable { path, source }),
            },
        };
        Ok(Sources { given, file, unknown_variables })
    }

    /// What holds for one setting.
    pub(crate) fn setting<T: Value>(
        &self,
        key: &'static str,
        default: impl FnOnce() -> T,
    ) -> Result<Setting<T>, SettingError> {
        let mut winner = None;
        for given in self.given.iter().filter(|given| given.key == key) {
            let value = given.parse()?;
            winner.get_or_insert_with(|| Setting { value, origin: given.origin.clone() });
        }
        Ok(winner.unwrap_or_else(|| Setting { value: default(), origin: Origin::Default }))
    }
}
