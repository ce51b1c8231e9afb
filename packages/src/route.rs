//! What an installer's request is for. Pure, so that what is no route can be tried without anybody's network.

use percent_encoding::percent_decode_str;
use sandbox_schemas::language::Language;

use crate::name::normalise;
use crate::npm::version_of;

/// What is asked for. Names are normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/pypi/simple/<project>/`
    Project { name: String },
    /// `/pypi/files/<project>/<file>`
    Wheel { name: String, file: String },
    /// `/pypi/files/<project>/<file>.metadata`
    Metadata { name: String, file: String },
    /// `/npm/<name>`, `/npm/@<scope>%2f<name>`, `/npm/@<scope>/<name>`
    Packument { name: String },
    /// `/npm/<name>/-/<file>.tgz`
    Tarball { name: String, version: String },
}

impl Route {
    pub(crate) fn parse(path: &str) -> Option<Route> {
        let path = percent_decode_str(path).decode_utf8().ok()?;
        if let Some(rest) = path.strip_prefix("/pypi/") {
            return Route::pypi(rest);
        }
        Route::npm(path.strip_prefix("/npm/")?)
    }

    fn pypi(path: &str) -> Option<Route> {
        let project = |name: &str| Some(normalise(Language::Python, name).ok()?.into_owned());
        if let Some(name) = path.strip_prefix("simple/") {
            return Some(Route::Project { name: project(name.strip_suffix('/').unwrap_or(name))? });
        }
        let (name, file) = path.strip_prefix("files/")?.split_once('/')?;
        let name = project(name)?;
        Some(match file.strip_suffix(".metadata") {
            Some(file) => Route::Metadata { name, file: file.to_owned() },
            None => Route::Wheel { name, file: file.to_owned() },
        })
    }

    fn npm(path: &str) -> Option<Route> {
        let package = |name: &str| Some(normalise(Language::Javascript, name).ok()?.into_owned());
        match path.split_once("/-/") {
            None => Some(Route::Packument { name: package(path)? }),
            Some((name, file)) => {
                let name = package(name)?;
                let version = version_of(&name, file)?.to_owned();
                Some(Route::Tarball { name, version })
            }
        }
    }

    pub(crate) fn language(&self) -> Language {
        match self {
            Route::Project { .. } | Route::Wheel { .. } | Route::Metadata { .. } => Language::Python,
            Route::Packument { .. } | Route::Tarball { .. } => Language::Javascript,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Route::Project { name }
            | Route::Wheel { name, .. }
            | Route::Metadata { name, .. }
            | Route::Packument { name }
            | Route::Tarball { name, .. } => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_those_and_no_others() {
        let name = |text: &str| text.to_owned();
        for (path, route) in [
            ("/pypi/simple/Foo_Bar/", Route::Project { name: name("foo-bar") }),
            ("/pypi/simple/foo", Route::Project { name: name("foo") }),
            ("/pypi/files/foo/a%2Bb.whl", Route::Wheel { name: name("foo"), file: name("a+b.whl") }),
            ("/pypi/files/foo/a.whl.metadata", Route::Metadata { name: name("foo"), file: name("a.whl") }),
            ("/npm/lodash", Route::Packument { name: name("lodash") }),
            ("/npm/@types%2fnode", Route::Packument { name: name("@types/node") }),
            ("/npm/@types%2Fnode", Route::Packument { name: name("@types/node") }),
            ("/npm/@types/node", Route::Packument { name: name("@types/node") }),
            ("/npm/@a/b/-/b-1.0.0.tgz", Route::Tarball { name: name("@a/b"), version: name("1.0.0") }),
        ] {
            assert_eq!(Route::parse(path), Some(route), "{path}");
        }
        for path in [
            "/",
            "/pypi/simple/",
            "/pypi/simple//",
            "/pypi/simple/../x/",
            "/pypi/simple/a%2f..%2fb/",
            "/pypi/files/a",
            "/pypi/simple/a%00/",
            "/pypi/simple/%ff/",
            "/npm/",
            "/npm/-/ping",
            "/npm/-/v1/search",
            "/npm/lodash/latest",
            "/npm/@types",
            "/npm/lodash/-/other-1.0.0.tgz",
            "/npm/../pypi/simple/a/",
            "/npm/lodash/-/lodash-1.0.0.zip",
            "pypi/simple/a/",
            "/PYPI/simple/a/",
            "http://example.com/pypi/simple/a/",
        ] {
            assert_eq!(Route::parse(path), None, "{path}");
        }
    }
}
