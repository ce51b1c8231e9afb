//! The settings. Each is declared once, as a row of the table below; its flag (`--warm-pool-size 0`), its environment
//! variable (`SANDBOX_MCP_WARM_POOL_SIZE`), its key in the file (`warm_pool_size = 0`), its help and its checks come from there.

// In the order in which to read them.
mod sources;

mod file;
mod flags;

mod given;

mod value;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use sandbox_engine::{AcceleratorChoice, EngineConfig, Limits};
use sandbox_packages::{Allowlist, CredentialFiles, GatewayConfig};
use sandbox_remote::{S3, S3Config, Secret, Timing};
use sandbox_schemas::image::BootImage;
use sandbox_schemas::language::Language;
use sandbox_store::{CacheDir, DEFAULT_LIMIT_GB, GIGABYTE, Tier};

pub(crate) use flags::Flags;
pub(crate) use given::{Origin, SettingError};
pub(crate) use sources::ConfigFile;
pub(crate) use value::Results;

use crate::share::Share;
use sources::Sources;
use value::{LogFilter, Name, Names, Number, PackageSets, PackageSources, Prefix, RegistryUrl, Shares, Tools, Value};

/// A setting's value, and who has set it.
#[derive(Debug, Clone)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// A row of the table, as far as it is the same for all types.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    /// Its name in the file, from which the others follow.
    pub(crate) key: &'static str,
    /// What stands for the value in the help: its unit, or what may be written.
    pub(crate) placeholder: &'static str,
    pub(crate) help: &'static str,
    /// What holds when nobody has set it, in words: it may depend on the machine.
    pub(crate) default: &'static str,
    /// Whether its flag takes no value: `--key` is true, `--no-key` is false.
    pub(crate) is_switch: bool,
    /// The least and the most that a number may be.
    pub(crate) bounds: Option<(u32, u32)>,
    /// Whether it is several, with `|` between them; its flag may be given several times.
    pub(crate) is_list: bool,
}

impl Spec {
    pub(crate) fn flag(&self) -> String {
        format!("--{}", self.key.replace('_', "-"))
    }

    pub(crate) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.to_uppercase())
    }
}

/// What every variable of ours begins with.
const VARIABLE_PREFIX: &str = "SANDBOX_MCP_";

/// Declares the settings: `/// help`, `key: type as "placeholder" = default, "default in words";`.
macro_rules! settings {
    ($($(#[doc = $help:literal])+ $key:ident: $type:ty as $placeholder:literal = $default:expr, $words:literal;)+) => {
        /// All settings, each with where it came from.
        #[derive(Debug, Clone)]
        pub(crate) struct Settings {
            $($(#[doc = $help])+ pub(crate) $key: Setting<$type>,)+
            /// The file that was looked at.
            pub(crate) file: Option<ConfigFile>,
            /// Variables that look like ours and are not.
            pub(crate) unknown_variables: Vec<String>,
            /// Where the cache looks for what is not on the disk: once for all who ask for the cache.
            tier: Arc<OnceLock<Arc<S3>>>,
        }

        /// The table.
        pub(crate) const SPECS: &[Spec] = &[$(Spec {
            key: stringify!($key),
            placeholder: $placeholder,
            help: concat!($($help),+),
            default: $words,
            is_switch: <$type>::IS_SWITCH,
            bounds: <$type>::BOUNDS,
            is_list: <$type>::IS_LIST,
        },)+];

        impl Settings {
            fn from_sources(sources: Sources) -> Result<Settings, SettingError> {
                Ok(Settings {
                    $($key: sources.setting(stringify!($key), || $default)?,)+
                    file: sources.file,
                    unknown_variables: sources.unknown_variables,
                    tier: Arc::default(),
                })
            }

            /// Each with its value as a file would have it, `None` where there is none.
            pub(crate) fn rows(&self) -> Vec<(&'static Spec, Option<String>, &Origin)> {
                let values = [$((self.$key.value.to_toml(), &self.$key.origin),)+];
                SPECS.iter().zip(values).map(|(spec, (value, origin))| (spec, value, origin)).collect()
            }
        }
    };
}

settings! {
    /// What executes the guests. `auto` boots a trial VM on KVM and falls back to TCG, which is slower
    accel: AcceleratorChoice as "auto|kvm|tcg" = AcceleratorChoice::Auto, "auto";

    /// Refuse to run without KVM, with which alone QEMU promises isolation. Wins over accel, whoever has set that
    require_kvm: bool as "" = false, "false";

    /// QEMU's binary
    qemu: Option<PathBuf> as "FILE" = None, "the image's own where it was built, else from PATH or the usual places";

    // More than a machine of today can hold: it catches a number that was meant for something else.
    /// VMs that exist at the same time, those that wait for a program included; further calls wait
    max_concurrent_vms: Number<1, 1000> as "VMS" = Number::of(Limits::of_this_machine().vms),
        "by cores and memory, at most 10";

    /// Sessions that may be open at the same time, background runs without one included; each keeps one of the VMs
    max_sessions: Option<Number<0, 1000>> as "SESSIONS" = None, "all VMs but one";

    /// VMs that wait for a program, started in advance; 0 for none
    warm_pool_size: Number<0, 64> as "VMS" = Number::of(cores().min(4)), "one a processor, at most 4";

    /// Restore VMs from a template instead of booting each: faster
    templates: bool as "" = true, "true";

    /// Where images, templates and verdicts on this machine are kept
    cache_dir: Option<PathBuf> as "DIR" = user_cache_dir(), "the user's cache directory";

    /// What images and templates may take on the disk; after a build, the least recently used go that no process uses
    cache_max_gb: Number<0, 1_000_000> as "GB" = Number::of(DEFAULT_LIMIT_GB as usize), "10";

    /// S3 bucket in which hosts share what they have built: images, package layers, and templates if they share a key. Nothing is
    /// contacted unless it is set
    s3_bucket: Option<Name> as "NAME" = None, "none";

    /// The bucket's region
    s3_region: Option<Name> as "NAME" = None, "as AWS's variables and files say";

    /// What the keys of all objects begin with
    s3_prefix: Prefix as "PREFIX" = Prefix("sandbox-mcp/".into()), "sandbox-mcp/";

    /// S3 service that is not Amazon's
    s3_endpoint_url: Option<RegistryUrl> as "URL" = None, "Amazon's";

    /// Name the bucket in the path, not in the host's name, as services other than Amazon's often want it
    s3_force_path_style: bool as "" = false, "false";

    /// Entries that are sent to the bucket at the same time
    max_concurrent_s3_uploads: Number<1, 16> as "ENTRIES" = Number::of(2), "2";

    /// Key of 32 bytes or more that the hosts share: with it, nothing is taken from the bucket that another host with the key did
    /// not put there; without it, templates are not shared
    s3_hmac_key_file: Option<PathBuf> as "FILE" = None, "none: templates are not shared";

    /// Install only packages whose names are on the allowlist, those that others need included
    package_allowlist: bool as "" = true, "true";

    /// Names of the Python packages that may be installed, one a line, in place of the 10,000 most used
    pypi_allowlist: Option<PathBuf> as "FILE" = None, "the 10,000 most used names";

    /// Names of the npm packages that may be installed, one a line, in place of the 10,000 most used
    npm_allowlist: Option<PathBuf> as "FILE" = None, "the 10,000 most used names";

    /// Python packages that may be installed as well, with spaces between them
    allow_pypi: Names as "NAMES" = Names::default(), "none";

    /// npm packages that may be installed as well, with spaces between them
    allow_npm: Names as "NAMES" = Names::default(), "none";

    /// Where Python packages come from: a simple index
    pypi_index_url: RegistryUrl as "URL" = RegistryUrl("https://pypi.org/simple/".into()), "https://pypi.org/simple/";

    /// Where npm packages come from
    npm_registry_url: RegistryUrl as "URL" = RegistryUrl("https://registry.npmjs.org/".into()), "https://registry.npmjs.org/";

    /// Python packages that come from another index and from there only, such as `acme-*,torch=https://example.com/simple/`
    pypi_sources: PackageSources as "SOURCES" = PackageSources::default(), "none";

    /// npm packages that come from another registry and from there only, such as `@acme=https://npm.example.com/`
    npm_sources: PackageSources as "SOURCES" = PackageSources::default(), "none";

    /// Sets of packages that a VM waits with from the start on, such as `python numpy pandas | javascript lodash`
    warm_sets: PackageSets as "SETS" = PackageSets::default(), "none";

    /// Folders of this computer that `write_file` may take from by path, and with `:rw` `read_file` may write to, with ` | ` between them
    share: Shares as "DIR[:rw]" = Shares::default(), "none";

    /// What a result is: `model`, what a person would see in a terminal, and figures in `_meta`; `data`, fields for a program
    results: Option<Results> as "model|data" = None, "model for a client that introduces itself, data for a bare request";

    /// The tools that clients are offered; what a model does not need it need not be told of with every conversation
    tools: Tools as "TOOLS" = Tools::all(), "all";

    /// Characters of a program's output that a model is given at once, the beginning and the end; all of it can be fetched
    max_output_chars: Number<1000, 1000000> as "CHARACTERS" = Number::of(25_000), "25000";

    /// What is logged on stderr: `error`, `warn`, `info`, `debug`, `trace`, or tracing's filters
    log: LogFilter as "FILTER" = LogFilter::default(), "warn";
}

impl Settings {
    /// What holds: flags win over the environment, that over the file. What loses is checked as well: a mistake is told when
    /// it is made, not when the flag that hid it goes.
    pub(crate) fn resolve(flags: &Flags) -> Result<Settings, SettingError> {
        Settings::from_sources(Sources::gather(flags, std::env::vars_os(), user_config_file())?)
    }

    /// What only a look at the host shows to be wrong. Told at the start, to whoever sets the server up, rather than to a model with each call.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.share.value.0.iter().try_for_each(Share::check)?;
        match self.cache() {
            Ok(_) => self.packages()?.check().map_err(Into::into),
            // Whether anything will be kept or installed is not known yet.
            Err(_) => Ok(()),
        }
    }

    pub(crate) fn accelerator(&self) -> AcceleratorChoice {
        if self.require_kvm.value { AcceleratorChoice::Kvm } else { self.accel.value }
    }

    pub(crate) fn limits(&self) -> Limits {
        let vms = self.max_concurrent_vms.value.get();
        let sessions = self.max_sessions.value.map_or_else(|| Limits::sessions_of(vms), Number::get);
        Limits { vms, sessions, ..Limits::of_this_machine() }
    }

    pub(crate) fn cache(&self) -> anyhow::Result<CacheDir> {
        let root = self.cache_dir.value.clone();
        let root = root.context("no home directory is known: set HOME, or name a folder with --cache-dir")?;
        let cache = CacheDir::new(root, self.cache_max_gb.value.get() as u64 * GIGABYTE);
        let tiers = self.tier.get().map(|s3| s3.clone() as Arc<dyn Tier>);
        Ok(cache.with_tiers(tiers.into_iter().collect()))
    }

    /// Puts the bucket behind the cache, if there is one. Contacts nobody.
    pub(crate) fn open_tier(&self) -> anyhow::Result<Option<Arc<S3>>> {
        let Some(Name(bucket)) = &self.s3_bucket.value else { return Ok(None) };
        let key_file = &self.s3_hmac_key_file;
        let secret = key_file.value.as_ref().map(|path| Secret::read(path)).transpose();
        let secret = secret.with_context(|| format!("{}: s3_hmac_key_file", key_file.origin))?;
        let s3 = S3::new(S3Config {
            bucket: bucket.clone(),
            region: self.s3_region.value.as_ref().map(|Name(region)| region.clone()),
            prefix: self.s3_prefix.value.0.clone(),
            endpoint_url: self.s3_endpoint_url.value.as_ref().map(|RegistryUrl(url)| url.clone()),
            force_path_style: self.s3_force_path_style.value,
            uploads: self.max_concurrent_s3_uploads.value.get(),
            secret,
            timing: Timing::default(),
        });
        let s3 = Arc::new(s3.context("starting the threads that fetch and send")?);
        Ok(Some(self.tier.get_or_init(|| s3).clone()))
    }

    /// Which packages may be installed, and where they come from.
    fn packages(&self) -> anyhow::Result<GatewayConfig> {
        let mut allowlist = if self.package_allowlist.value { Allowlist::builtin() } else { Allowlist::off() };
        if self.package_allowlist.value {
            let of_languages = [
                (Language::Python, &self.pypi_allowlist, &self.allow_pypi),
                (Language::Javascript, &self.npm_allowlist, &self.allow_npm),
            ];
            for (language, file, names) in of_languages {
                if let Some(path) = &file.value {
                    allowlist = allowlist.with_file(language, path).with_context(|| file.origin.to_string())?;
                }
                let names_of = names.value.0.iter().map(String::as_str);
                allowlist = allowlist.with_names(language, names_of).with_context(|| names.origin.to_string())?;
            }
        }
        let mut packages = GatewayConfig::new(self.cache()?);
        packages.allowlist = allowlist;
        packages.pypi_index_url = self.pypi_index_url.value.0.clone();
        packages.npm_registry_url = self.npm_registry_url.value.0.clone();
        packages.credentials = credential_files();
        for (language, sources) in [(Language::Python, &self.pypi_sources), (Language::Javascript, &self.npm_sources)] {
            for (names, RegistryUrl(url)) in &sources.value.0 {
                let with_source = packages.with_source(language, names.iter().map(String::as_str), url);
                packages = with_source.with_context(|| sources.origin.to_string())?;
            }
        }
        Ok(packages)
    }

    /// `own_qemu` is the one that was built for the VMs: whoever has named another gets that.
    pub(crate) fn engine_config(&self, image: BootImage, own_qemu: Option<PathBuf>) -> anyhow::Result<EngineConfig> {
        Ok(EngineConfig {
            qemu: self.qemu.value.clone().or(own_qemu),
            accelerator: self.accelerator(),
            limits: self.limits(),
            warm_pool_size: self.warm_pool_size.value.get(),
            uses_templates: self.templates.value,
            image,
            cache: self.cache()?,
            packages: self.packages()?,
            warm_sets: self.warm_sets.value.0.clone(),
        })
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn user_dirs() -> Option<directories::ProjectDirs> {
    directories::ProjectDirs::from("", "", "sandbox-mcp")
}

fn user_cache_dir() -> Option<PathBuf> {
    user_dirs().map(|folders| folders.cache_dir().to_path_buf())
}

/// Where the user's other tools have what opens registries.
fn credential_files() -> CredentialFiles {
    let home = directories::BaseDirs::new().map(|folders| folders.home_dir().to_owned());
    let file = |variable: &str, name: &str| {
        std::env::var_os(variable).map(PathBuf::from).or_else(|| home.as_ref().map(|home| home.join(name)))
    };
    CredentialFiles { netrc: file("NETRC", ".netrc"), npmrc: file("NPM_CONFIG_USERCONFIG", ".npmrc") }
}

fn user_config_file() -> Option<PathBuf> {
    user_dirs().map(|folders| folders.config_dir().join("config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &[(&'static str, &str)], variables: &[(&str, &str)], file: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        let flags = Flags::of(flags);
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let sources = Sources::gather(&flags, variables, Some(path));
        let settings = sources.and_then(Settings::from_sources);
        settings.map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), ""))
    }

    #[track_caller]
    fn check_refused(flags: &[(&'static str, &str)], variables: &[(&str, &str)], file: &str, expected: &str) {
        assert_eq!(settings(flags, variables, file).unwrap_err(), expected);
    }

    #[test]
    fn a_mistake_names_the_setting_and_its_place_and_what_is_allowed() {
        let expected = "--warm-pool-size: warm_pool_size is `65`, and must be a whole number from 0 to 64";
        check_refused(&[("warm_pool_size", "65")], &[], "", expected);
        let expected = "the environment variable SANDBOX_MCP_ACCEL: accel is `magic`, and must be auto, kvm or tcg";
        check_refused(&[], &[("SANDBOX_MCP_ACCEL", "magic")], "", expected);
        let expected = "/config.toml:3: templates is `\"no\"`, and must be true or false";
        check_refused(&[], &[], "# mine\n\ntemplates = \"no\"\n", expected);
        let expected = "/config.toml:1: max_concurrent_vms is `\"3\"`, and must be a whole number from 1 to 1000";
        check_refused(&[], &[], "max_concurrent_vms = \"3\"", expected);
        let expected = "/config.toml:1: max_concurrent_vms is `-1`, and must be a whole number from 1 to 1000";
        check_refused(&[], &[], "max_concurrent_vms = -1", expected);
        let expected = "/config.toml:1: qemu is `\"~/qemu\"`, and must be a path (`~` is not expanded: write it out)";
        check_refused(&[], &[], "qemu = \"~/qemu\"", expected);
        let expected = "--log: log is `a=b=c`, and must be a level (error, warn, info, debug, trace, off) or a filter such as \
                        `sandbox_engine=debug`";
        check_refused(&[("log", "a=b=c")], &[], "", expected);
    }

    #[test]
    fn a_mistake_that_is_hidden_is_told() {
        let expected = "/config.toml:1: warm_pool_size is `99`, and must be a whole number from 0 to 64";
        check_refused(&[("warm_pool_size", "1")], &[], "warm_pool_size = 99", expected);
    }

    #[test]
    fn a_file_is_ours_alone_and_the_environment_is_not() {
        let keys = SPECS.iter().map(|spec| spec.key).collect::<Vec<_>>().join(", ");
        check_refused(
            &[],
            &[],
            "\nwarm_pool = 1",
            &format!("/config.toml:2: there is no setting `warm_pool`, but {keys}"),
        );
        check_refused(&[], &[], "[pool]\nsize = 1", &format!("/config.toml:1: there is no setting `pool`, but {keys}"));
        let settings = settings(&[], &[("SANDBOX_MCP_WARM_POOL", "1"), ("SANDBOX_MCP_QEMU", "")], "").unwrap();
        assert_eq!(settings.unknown_variables, ["SANDBOX_MCP_WARM_POOL"]);
        assert!(settings.qemu.value.is_none(), "an empty variable is none");
    }

    #[test]
    fn a_file_that_is_not_toml_is_told_with_its_line() {
        let error = settings(&[], &[], "log = \"warn\"\naccel = kvm\n").unwrap_err();
        assert!(error.starts_with("/config.toml:2: is not TOML: string values must be quoted"), "{error}");
        let error = settings(&[], &[], "log = \"warn\"\nlog = \"info\"\n").unwrap_err();
        assert!(error.starts_with("/config.toml:2: is not TOML: duplicate key"), "{error}");
    }

    #[test]
    fn paths_of_a_file_begin_at_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        std::fs::write(&path, "qemu = \"bin/qemu\"\ncache_dir = \"/cache\"\nwarm_pool_size = 0x1_0").unwrap();
        let sources = Sources::gather(&Flags::of(&[]), std::iter::empty(), Some(path)).unwrap();
        let settings = Settings::from_sources(sources).unwrap();
        assert_eq!(settings.qemu.value, Some(folder.path().join("bin/qemu")));
        assert_eq!(settings.cache_dir.value, Some("/cache".into()));
        assert_eq!(settings.warm_pool_size.value.get(), 16);
    }

    #[test]
    fn kvm_that_is_required_wins() {
        let choice = |flags: &[(&'static str, &str)]| {
            settings(flags, &[("SANDBOX_MCP_ACCEL", "tcg")], "").unwrap().accelerator()
        };
        assert_eq!(choice(&[]), AcceleratorChoice::Tcg);
        assert_eq!(choice(&[("require_kvm", "true")]), AcceleratorChoice::Kvm);
    }

    #[test]
    fn defaults_are_allowed_and_the_readme_has_every_setting() {
        let readme = include_str!("../../../README.md");
        let settings = settings(&[], &[], "").unwrap();
        for (spec, _, origin) in settings.rows() {
            assert!(matches!(origin, Origin::Default));
            let bounds = spec.bounds.map_or_else(String::new, |(least, most)| format!(" {least}..{most}` | "));
            let row = format!("| `{}` | `{}{bounds}", spec.key, spec.flag());
            assert!(readme.contains(&row), "README.md has no row that begins {row}");
        }
        assert!((1..=10).contains(&settings.limits().vms));
        assert!(settings.warm_pool_size.value.get() <= 4);
    }
}
