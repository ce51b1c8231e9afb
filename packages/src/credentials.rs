//! What opens private registries: a name and a password in the URL that a registry was given by, its host's in a netrc file, or
//! its token in npm's own file. No guest ever sees them, nor does anybody who is shown a URL.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use netrc::Netrc;
use percent_encoding::percent_decode_str;
use url::Url;

/// Where credentials are looked for beside a registry's URL, which has precedence.
#[derive(Debug, Clone, Default)]
pub struct CredentialFiles {
    /// As curl, pip and uv read it: a name and a password for each host.
    pub netrc: Option<PathBuf>,
    /// As npm reads it: `//host/path/:_authToken=...`, where `${NAME}` is a variable of the environment.
    pub npmrc: Option<PathBuf>,
}

/// What opens which registry.
#[derive(Debug, Default)]
pub(crate) struct Credentials(Vec<(Url, HeaderValue)>);

impl CredentialFiles {
    /// Takes what opens these registries out of their URLs, or reads it from the files. One that cannot be read opens nothing, which
    /// the registry will say.
    pub(crate) fn open<'u>(&self, registries: impl IntoIterator<Item = &'u mut Url>) -> Credentials {
        let mut netrc = None;
        let mut npmrc = None;
        let mut found = Vec::new();
        for url in registries {
            let header = of_url(url)
                .or_else(|| token(npmrc.get_or_insert_with(|| read_npmrc(self.npmrc.as_deref())), url))
                .or_else(|| of_host(netrc.get_or_insert_with(|| read_netrc(self.netrc.as_deref())).as_ref()?, url));
            if let Some(header) = header {
                found.push((url.clone(), header));
            }
        }
        Credentials(found)
    }
}

impl Credentials {
    /// What to send along. A registry's files often lie elsewhere on its host, which gets the same; no other host does.
    pub(crate) fn of(&self, url: &Url) -> Option<&HeaderValue> {
        let of_host = self.0.iter().filter(|(registry, _)| registry.origin() == url.origin());
        let depth = |registry: &Url| if url.path().starts_with(registry.path()) { registry.path().len() } else { 0 };
        of_host.max_by_key(|(registry, _)| depth(registry)).map(|(_, header)| header)
    }
}

fn of_url(url: &mut Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (name, password) = (decoded(url.username()), decoded(url.password().unwrap_or_default()));
    // Only URLs without a host cannot be rid of them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    header("Basic", &STANDARD.encode(format!("{name}:{password}")))
}

fn of_host(netrc: &Netrc, url: &Url) -> Option<HeaderValue> {
    let host = netrc.hosts.get(url.host_str()?)?;
    header("Basic", &STANDARD.encode(format!("{}:{}", host.login, host.password)))
}

/// The nearest entry above a registry, as npm has it.
fn token(npmrc: &HashMap<String, HeaderValue>, url: &Url) -> Option<HeaderValue> {
    let mut place = &url[url::Position::BeforeHost..url::Position::AfterPath];
    loop {
        place = place.trim_end_matches('/');
        if let Some(header) = npmrc.get(place) {
            return Some(header.clone());
        }
        place = &place[..place.rfind('/')?];
    }
}

fn header(scheme: &str, secret: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {secret}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn read_netrc(path: Option<&Path>) -> Option<Netrc> {
    let path = path.filter(|path| path.is_file())?;
    Netrc::from_file(path)
        .inspect_err(|error| tracing::warn!("{} is not understood, and opens no registry: {error}", path.display()))
        .ok()
}

fn read_npmrc(path: Option<&Path>) -> HashMap<String, HeaderValue> {
    let Some(path) = path.filter(|path| path.is_file()) else { return HashMap::new() };
    match fs::read_to_string(path) {
        Ok(text) => text.lines().filter_map(npmrc_entry).collect(),
        Err(error) => {
            tracing::warn!("{} cannot be read, and opens no registry: {error}", path.display());
            HashMap::new()
        }
    }
}

/// `//host/path/:_authToken=...` or `:_auth=...`.
fn npmrc_entry(line: &str) -> Option<(String, HeaderValue)> {
    let (key, value) = line.trim().split_once('=')?;
    let (place, kind) = key.trim().strip_prefix("//")?.rsplit_once(':')?;
    let value = expand(value.trim().trim_matches('"'));
    let header = match kind {
        "_authToken" => header("Bearer", &value),
        "_auth" => header("Basic", &value),
        _ => None,
    };
    Some((place.trim_end_matches('/').to_owned(), header?))
}

/// Puts variables of the environment in place of `${NAME}`; what is not set stays as it is, as npm leaves it.
fn expand(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let Some((name, after)) = rest.split_once('}') else { return text.to_owned() };
    let value = std::env::var(name).unwrap_or_else(|_| format!("${{{name}}}"));
    format!("{before}{value}{}", expand(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent to a URL, of credentials in these places.
    fn sent(registries: &[&str], netrc: &str, npmrc: &str, to: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        let files = CredentialFiles { netrc: file("netrc", netrc), npmrc: file("npmrc", npmrc) };
        let mut urls: Vec<Url> = registries.iter().map(|text| text.parse().unwrap()).collect();
        let credentials = files.open(&mut urls);
        assert!(urls.iter().all(|url| url.username().is_empty() && url.password().is_none()), "{urls:?}");
        let header = credentials.of(&to.parse().unwrap());
        assert!(header.is_none_or(HeaderValue::is_sensitive));
        let text = header?.to_str().unwrap();
        Some(match text.strip_prefix("Basic ") {
            Some(encoded) => String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap(),
            None => text.to_owned(),
        })
    }

    #[test]
    fn what_opens_an_index_opens_its_host_and_no_other() {
        let registries = ["https://u:p%40ss@example.com/simple/", "https://other.example/"];
        let to = |url| sent(&registries, "", "", url);
        assert_eq!(to("https://example.com/simple/a/").as_deref(), Some("u:p@ss"));
        assert_eq!(to("https://example.com/files/a.whl").as_deref(), Some("u:p@ss"));
        for other in
            ["https://example.com:8443/", "http://example.com/", "https://files.example.com/", "https://other.example/"]
        {
            assert_eq!(to(other), None, "{other}");
        }
    }

    #[test]
    fn of_two_registries_of_a_host_each_has_its_own() {
        let registries = ["https://a:1@example.com/one/", "https://b:2@example.com/two/"];
        let to = |url| sent(&registries, "", "", url);
        assert_eq!(to("https://example.com/one/x").as_deref(), Some("a:1"));
        assert_eq!(to("https://example.com/two/x").as_deref(), Some("b:2"));
    }

    #[test]
    fn files_open_what_no_url_does() {
        let netrc = "machine example.com login me password secret\n";
        let npmrc =
            "registry=https://else.example/\n//npm.example/:_authToken=\"tok\"\n//npm.example/deep/:_auth=dTpw\n";
        let to = |registries: &[&str], url| sent(registries, netrc, npmrc, url);
        assert_eq!(to(&["https://example.com/x/"], "https://example.com/x/a").as_deref(), Some("me:secret"));
        assert_eq!(to(&["https://u:p@example.com/x/"], "https://example.com/x/a").as_deref(), Some("u:p"));
        assert_eq!(to(&["https://npm.example/any/"], "https://npm.example/any/a").as_deref(), Some("Bearer tok"));
        assert_eq!(to(&["https://npm.example/deep/er/"], "https://npm.example/deep/er/a").as_deref(), Some("u:p"));
        // Only hosts that were named as registries.
        assert_eq!(to(&["https://else.example/"], "https://example.com/x/a"), None);
    }

    #[test]
    fn variables_are_put_in_as_npm_does() {
        let home = std::env::var("PATH").unwrap();
        assert_eq!(expand("a${PATH}b${NO_SUCH_VARIABLE_HERE}"), format!("a{home}b${{NO_SUCH_VARIABLE_HERE}}"));
        assert_eq!(expand("${open"), "${open");
    }
}
