//! The page that the guest gets: every URL leads back to the gateway, every file has its hash and its metadata.

use serde::Serialize;

use crate::pypi::page::{Page, Wheel};

/// What a page is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Html,
}

impl Form {
    /// What `accept` asks for. uv and pip name JSON first; what names nothing that we know gets HTML, as PEP 691 says.
    pub(crate) fn of(accept: &str) -> Form {
        if accept.contains("application/vnd.pypi.simple.v1+json")
            || accept.contains("application/vnd.pypi.simple.latest+json")
        {
            Form::Json
        } else {
            Form::Html
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Form::Json => "application/vnd.pypi.simple.v1+json",
            Form::Html => "text/html; charset=utf-8",
        }
    }
}

#[derive(Serialize)]
struct Document<'p> {
    meta: Meta,
    name: &'p str,
    files: Vec<File<'p>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Meta {
    api_version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct File<'p> {
    filename: &'p str,
    url: String,
    hashes: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requires_python: Option<&'p str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    yanked: Option<&'p str>,
    core_metadata: bool,
}

/// Writes a page.
pub(crate) fn render(page: &Page, form: Form) -> Vec<u8> {
    match form {
        // Only maps with keys that are no strings cannot be written.
        Form::Json => serde_json::to_vec(&json(page)).unwrap_or_default(),
        Form::Html => html(page).into_bytes(),
    }
}

fn url(page: &Page, wheel: &Wheel) -> String {
    format!("/pypi/files/{}/{}", page.project, wheel.file)
}

fn json(page: &Page) -> Document<'_> {
    Document {
        meta: Meta { api_version: "1.0" },
        name: &page.project,
        files: page.wheels.iter().map(|wheel| file(page, wheel)).collect(),
    }
}

fn file<'p>(page: &'p Page, wheel: &'p Wheel) -> File<'p> {
    let hashes = [(wheel.checksum.algorithm_name().to_owned(), wheel.checksum.hex().into())];
    File {
        filename: &wheel.file,
        url: url(page, wheel),
        hashes: hashes.into_iter().collect(),
        requires_python: wheel.requires_python.as_deref(),
        size: wheel.size_bytes,
        yanked: wheel.yanked.as_deref(),
        // Where there is none it is taken from the wheel: else uv would ask for parts of that again and again. What it hashes to is
        // not told, since something may be left out of it.
        core_metadata: true,
    }
}

fn html(page: &Page) -> String {
    let mut text = format!("<!DOCTYPE html>\n<html><head><title>{0}</title></head><body><h1>{0}</h1>\n", page.project);
    for wheel in &page.wheels {
        let (algorithm, hex) = (wheel.checksum.algorithm_name(), wheel.checksum.hex());
        text += &format!("<a href=\"{}#{algorithm}={hex}\"", escape(&url(page, wheel)));
        text += " data-core-metadata=\"true\"";
        for (name, value) in [("requires-python", &wheel.requires_python), ("yanked", &wheel.yanked)] {
            if let Some(value) = value {
                text += &format!(" data-{name}=\"{}\"", escape(value));
            }
        }
        text += &format!(">{}</a><br>\n", escape(&wheel.file));
    }
    text + "</body></html>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pypi::{Metadata, html as html_page, json as json_page};
    use sandbox_download::Checksum;
    use std::collections::BTreeMap;

    #[test]
    fn both_forms_say_the_same() {
        let checksum = |digit: &str| Checksum::from_hex("sha256", &digit.repeat(64)).unwrap();
        let wheel = |version: &str| Wheel {
            file: format!("a-{version}-py3-none-any.whl"),
            version: version.into(),
            url: "https://f.example.com/x".parse().unwrap(),
            checksum: checksum("c"),
            size_bytes: None,
            requires_python: Some(">=3.8,<\"4\"".into()),
            yanked: Some("<b> & c".into()),
            metadata: Metadata::Beside(Some(checksum("d"))),
        };
        let mut second = Wheel { requires_python: None, yanked: None, ..wheel("2") };
        second.metadata = Metadata::Within;
        let page = Page { project: "a".into(), wheels: vec![wheel("1"), second], unusable: BTreeMap::new() };
        let base = "http://gateway/pypi/simple/a/".parse().unwrap();
        let json = json_page::parse(&render(&page, Form::Json), &base).unwrap();
        for listed in [json, html_page::parse(&render(&page, Form::Html), &base)] {
            assert_eq!(listed.len(), 2);
            for (listed, wheel) in listed.iter().zip(&page.wheels) {
                assert_eq!(listed.url.as_str(), format!("http://gateway/pypi/files/a/{}", wheel.file));
                assert_eq!((&listed.file, listed.checksum.as_ref()), (&wheel.file, Some(&wheel.checksum)));
                assert_eq!((&listed.requires_python, &listed.yanked), (&wheel.requires_python, &wheel.yanked));
            }
            assert!(listed.iter().all(|listed| listed.metadata == Metadata::Beside(None)));
        }
    }

    #[test]
    fn installers_get_json_and_others_html() {
        let uv = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01";
        assert_eq!(Form::of(uv), Form::Json);
        assert_eq!([Form::of("*/*"), Form::of(""), Form::of("text/html")], [Form::Html; 3]);
    }
}
