//! What a setting can be: how it is written, and what of that is allowed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use sandbox_engine::{AcceleratorChoice, PackageSet};
use sandbox_packages::without_credentials;
use sandbox_schemas::language::Language;
use sandbox_schemas::tools::TOOLS;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::share::Share;

/// A type of settings.
pub(crate) trait Value: Sized {
    /// How TOML calls it.
    const TOML_TYPE: &'static str;

    /// Whether its flag takes no value.
    const IS_SWITCH: bool = false;

    /// The least and the most that a number may be.
    const BOUNDS: Option<(u32, u32)> = None;

    /// Whether it is several, with `|` between them.
    const IS_LIST: bool = false;

    /// What may be written, as the end of "must be".
    fn allowed() -> String;

    /// What is meant by a text; `None` when that is not allowed. A path begins at `folder`.
    fn parse(text: &OsStr, folder: &Path) -> Option<Self>;

    /// How a file would have it; `None` when it is not set.
    fn to_toml(&self) -> Option<String>;
}

/// A whole number within bounds, which include both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> Number<MIN, MAX> {
    /// The number, or the bound next to it.
    pub(crate) fn of(number: usize) -> Self {
        Number(u32::try_from(number).unwrap_or(u32::MAX).clamp(MIN, MAX))
    }

    pub(crate) fn get(self) -> usize {
        // No target of ours has pointers of less than 32 bits.
        self.0 as usize
    }
}

impl<const MIN: u32, const MAX: u32> Value for Number<MIN, MAX> {
    const TOML_TYPE: &'static str = "integer";
    const BOUNDS: Option<(u32, u32)> = Some((MIN, MAX));

    fn allowed() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        let number = text.to_str()?.parse().ok()?;
        (MIN..=MAX).contains(&number).then_some(Number(number))
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.0.to_string())
    }
}

impl Value for bool {
    const TOML_TYPE: &'static str = "boolean";
    const IS_SWITCH: bool = true;

    fn allowed() -> String {
        "true or false".into()
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        // The numbers are what people write into environments; a file's booleans come here as words.
        match text.to_str()? {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        }
    }

    fn to_toml(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for Option<PathBuf> {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        "a path (`~` is not expanded: write it out)".into()
    }

    fn parse(text: &OsStr, folder: &Path) -> Option<Self> {
        // A shell expands `~`; a file and a client's list of arguments do not, and would make a folder of that name.
        (!text.is_empty() && !Path::new(text).starts_with("~")).then(|| Some(folder.join(text)))
    }

    fn to_toml(&self) -> Option<String> {
        self.as_ref().map(|path| quoted(&path.to_string_lossy()))
    }
}

const ACCELERATORS: [(&str, AcceleratorChoice); 3] =
    [("auto", AcceleratorChoice::Auto), ("kvm", AcceleratorChoice::Kvm), ("tcg", AcceleratorChoice::Tcg)];

impl Value for AcceleratorChoice {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        let [(first, _), (second, _), (last, _)] = ACCELERATORS;
        format!("{first}, {second} or {last}")
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        ACCELERATORS.into_iter().find(|(name, _)| text == *name).map(|(_, choice)| choice)
    }

    fn to_toml(&self) -> Option<String> {
        ACCELERATORS.into_iter().find(|(_, choice)| choice == self).map(|(name, _)| quoted(name))
    }
}

/// Who reads results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Results {
    /// A model: what a person would see in a terminal.
    Model,
    /// A program: fields, as the tool's output schema says.
    Data,
}

const RESULTS: [(&str, Results); 2] = [("model", Results::Model), ("data", Results::Data)];

impl Value for Results {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        let [(first, _), (last, _)] = RESULTS;
        format!("{first} or {last}")
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        RESULTS.into_iter().find(|(name, _)| text == *name).map(|(_, results)| results)
    }

    fn to_toml(&self) -> Option<String> {
        RESULTS.into_iter().find(|(_, results)| results == self).map(|(name, _)| quoted(name))
    }
}

/// Which events are logged.
#[derive(Debug, Clone)]
pub(crate) struct LogFilter(String);

impl LogFilter {
    pub(crate) fn to_filter(&self) -> EnvFilter {
        // It was parsed before, so what is wrong with it has been told.
        EnvFilter::new(&self.0)
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        LogFilter("warn".into())
    }
}

impl Value for LogFilter {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        "a level (error, warn, info, debug, trace, off) or a filter such as `sandbox_engine=debug`".into()
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        let text = text.to_str()?;
        // A level that is misspelt would be taken for the name of a module, of which all is logged, and of nothing else.
        let is_level = |word: &str| word.contains('=') || word.contains('[') || word.parse::<LevelFilter>().is_ok();
        let is_sound = text.split(',').map(str::trim).filter(|word| !word.is_empty()).all(is_level);
        EnvFilter::try_new(text).ok().filter(|_| is_sound).map(|_| LogFilter(text.into()))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

/// Names of packages, with spaces between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(pub(crate) Vec<String>);

impl Value for Names {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        "names of packages with spaces between them".into()
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        Some(Names(text.to_str()?.split_whitespace().map(String::from).collect()))
    }

    fn to_toml(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| quoted(&self.0.join(" ")))
    }
}

/// Names of tools, with spaces between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tools(Vec<&'static str>);

impl Tools {
    /// Every tool that there is.
    pub(crate) fn all() -> Tools {
        Tools(TOOLS.iter().map(|tool| tool.name).collect())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains(&name)
    }
}

impl Value for Tools {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        format!("names of tools with spaces between them, of {}", Tools::all().0.join(" "))
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        let tool = |name| TOOLS.iter().map(|tool| tool.name).find(|tool| *tool == name);
        let tools: Vec<_> = text.to_str()?.split_whitespace().map(tool).collect::<Option<_>>()?;
        (!tools.is_empty()).then_some(Tools(tools))
    }

    fn to_toml(&self) -> Option<String> {
        (*self != Tools::all()).then(|| quoted(&self.0.join(" ")))
    }
}

/// Sets of packages: a language and its packages, with `|` between the sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackageSets(pub(crate) Vec<PackageSet>);

impl Value for PackageSets {
    const TOML_TYPE: &'static str = "string";
    const IS_LIST: bool = true;

    fn allowed() -> String {
        "sets such as `python numpy pandas>=2 | javascript lodash`".into()
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        let set = |text: &str| {
            let mut words = text.split_whitespace().map(String::from);
            let language = Language::from_name(&words.next()?)?;
            let packages: Vec<String> = words.collect();
            // What of it can be installed is told when it is.
            (language != Language::Shell && !packages.is_empty()).then_some(PackageSet { language, packages })
        };
        text.to_str()?.split('|').map(set).collect::<Option<_>>().map(PackageSets)
    }

    fn to_toml(&self) -> Option<String> {
        let set = |set: &PackageSet| format!("{} {}", set.language, set.packages.join(" "));
        (!self.0.is_empty()).then(|| quoted(&self.0.iter().map(set).collect::<Vec<_>>().join(" | ")))
    }
}

/// Folders of the host, with `|` between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shares(pub(crate) Vec<Share>);

impl Value for Shares {
    const TOML_TYPE: &'static str = "string";
    const IS_LIST: bool = true;

    fn allowed() -> String {
        "folders such as `/home/me/data | /home/me/out:rw` (`~` is not expanded: write it out)".into()
    }

    fn parse(text: &OsStr, base: &Path) -> Option<Self> {
        let share = |text: &str| {
            let (folder, is_writable) = match text.trim().strip_suffix(":rw") {
                Some(folder) => (folder, true),
                None => (text.trim(), false),
            };
            let folder = Option::<PathBuf>::parse(folder.trim().as_ref(), base)??;
            Some(Share { folder, is_writable })
        };
        text.to_str()?.split('|').map(share).collect::<Option<_>>().map(Shares)
    }

    fn to_toml(&self) -> Option<String> {
        let share = |share: &Share| format!("{}{}", share.folder.display(), if share.is_writable { ":rw" } else { "" });
        (!self.0.is_empty()).then(|| quoted(&self.0.iter().map(share).collect::<Vec<_>>().join(" | ")))
    }
}

/// Where a registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegistryUrl(pub(crate) String);

impl Value for RegistryUrl {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        "an http or https URL".into()
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        let text = text.to_str()?;
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
        let is_sound = !rest.is_empty() && !rest.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_sound.then(|| RegistryUrl(text.into()))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&without_credentials(&self.0)))
    }
}

/// Registries that have names of their own: `name,name=URL`, with spaces between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PackageSources(pub(crate) Vec<(Vec<String>, RegistryUrl)>);

impl Value for PackageSources {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        "names of packages and where they come from, such as `acme-*,torch=https://example.com/simple/`".into()
    }

    fn parse(text: &OsStr, folder: &Path) -> Option<Self> {
        let source = |text: &str| {
            let (names, url) = text.split_once('=')?;
            Some((names.split(',').map(String::from).collect(), RegistryUrl::parse(url.as_ref(), folder)?))
        };
        text.to_str()?.split_whitespace().map(source).collect::<Option<_>>().map(PackageSources)
    }

    fn to_toml(&self) -> Option<String> {
        let source = |(names, RegistryUrl(url)): &(Vec<String>, RegistryUrl)| {
            format!("{}={}", names.join(","), without_credentials(url))
        };
        (!self.0.is_empty()).then(|| quoted(&self.0.iter().map(source).collect::<Vec<_>>().join(" ")))
    }
}

impl<T: Value> Value for Option<T> {
    const TOML_TYPE: &'static str = T::TOML_TYPE;

    fn allowed() -> String {
        T::allowed()
    }

    fn parse(text: &OsStr, folder: &Path) -> Option<Self> {
        T::parse(text, folder).map(Some)
    }

    fn to_toml(&self) -> Option<String> {
        self.as_ref().and_then(T::to_toml)
    }
}

/// What something is called elsewhere: a bucket, a region.
#[derive(Debug, Clone)]
pub(crate) struct Name(pub(crate) String);

impl Value for Name {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        "a name of letters, digits, `.`, `_` and `-`".into()
    }

    fn parse(text: &OsStr, _: &Path) -> Option<Self> {
        let text = text.to_str()?;
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        (!text.is_empty() && text.bytes().all(is_allowed)).then(|| Name(text.into()))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(&self.0))
    }
}

/// What the keys of objects begin with. A slash at its end goes without saying.
#[derive(Debug, Clone)]
pub(crate) struct Prefix(pub(crate) String);

impl Value for Prefix {
    const TOML_TYPE: &'static str = "string";

    fn allowed() -> String {
        "names of letters, digits, `.`, `_` and `-`, with slashes between them, or `/` for none".into()
    }

    fn parse(text: &OsStr, folder: &Path) -> Option<Self> {
        let text = text.to_str()?;
        if text == "/" {
            return Some(Prefix(String::new()));
        }
        let text = text.strip_suffix('/').unwrap_or(text);
        let are_names = text.split('/').all(|name| Name::parse(name.as_ref(), folder).is_some());
        are_names.then(|| Prefix(format!("{text}/")))
    }

    fn to_toml(&self) -> Option<String> {
        Some(quoted(if self.0.is_empty() { "/" } else { &self.0 }))
    }
}

/// A string of TOML: those of JSON are.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
