//! Names of packages. What is compared is always the normalised form.

use std::borrow::Cow;

use sandbox_schemas::language::Language;

/// Longest name, in bytes: npm's own limit, and more than any project of PyPI has.
const NAME_MAX_BYTES: usize = 214;

/// A text that is no package's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub(crate) &'static str);

/// The one form of a name that stands for all its spellings. For Python that of PEP 503: case, `-`, `_` and `.` make no
/// difference. On npm every difference counts, as it does for the registry.
pub fn normalise(language: Language, name: &str) -> Result<Cow<'_, str>, InvalidName> {
    if name.is_empty() {
        return Err(InvalidName("it is empty"));
    }
    if name.len() > NAME_MAX_BYTES {
        return Err(InvalidName("it is longer than 214 bytes"));
    }
    match language {
        Language::Python => python(name),
        Language::Javascript => javascript(name),
        Language::Shell => Err(InvalidName("there are no packages for shell")),
    }
}

fn python(name: &str) -> Result<Cow<'_, str>, InvalidName> {
    let is_allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if !name.bytes().all(is_allowed) {
        return Err(InvalidName("it consists of letters, digits, '-', '_' and '.'"));
    }
    let ends = [name.bytes().next(), name.bytes().last()];
    if !ends.into_iter().flatten().all(|c| c.is_ascii_alphanumeric()) {
        return Err(InvalidName("it begins and ends with a letter or a digit"));
    }
    let is_normal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if name.bytes().all(is_normal) && !name.contains("--") {
        return Ok(Cow::Borrowed(name));
    }
    let mut normal = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '-' | '_' | '.' if normal.ends_with('-') => {}
            '-' | '_' | '.' => normal.push('-'),
            character => normal.push(character.to_ascii_lowercase()),
        }
    }
    Ok(Cow::Owned(normal))
}

fn javascript(name: &str) -> Result<Cow<'_, str>, InvalidName> {
    let is_scoped = name.starts_with('@');
    let parts: Vec<_> = match name.strip_prefix('@') {
        Some(scoped) => scoped.split('/').collect(),
        None => vec![name],
    };
    if is_scoped && parts.len() != 2 {
        return Err(InvalidName("a scoped one is written as @scope/name"));
    }
    for part in parts {
        // Capital letters are those of packages from before they were forbidden, such as JSONStream.
        let is_allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'~');
        if part.is_empty() || !part.bytes().all(is_allowed) {
            return Err(InvalidName(
                "it consists of letters, digits, '-', '_', '.' and '~', after a @scope/ if it has one",
            ));
        }
        if part.starts_with(['.', '-']) || (part.starts_with('_') && !is_scoped) {
            return Err(InvalidName("it does not begin with '.', '_' or '-'"));
        }
    }
    if name.eq_ignore_ascii_case("node_modules") || name.eq_ignore_ascii_case("favicon.ico") {
        return Err(InvalidName("npm allows none of this name"));
    }
    Ok(Cow::Borrowed(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_python_name_are_one() {
        for name in ["Foo.Bar_baz", "foo-bar-baz", "FOO--BAR__.baz"] {
            assert_eq!(normalise(Language::Python, name).unwrap(), "foo-bar-baz");
        }
        for wrong in ["", "-a", "a-", "_", "a b", "a/b", "é", "a\u{435}", "a@b", &"a".repeat(215)] {
            assert!(normalise(Language::Python, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn npm_names_stand_as_they_are() {
        for name in ["lodash", "@types/node", "JSONStream", "lodash.merge", "a~b", "@a/_b", "0"] {
            assert_eq!(normalise(Language::Javascript, name).unwrap(), name);
        }
        for wrong in
            ["@types", "@/a", "@a/", "@a/b/c", "a/b", ".a", "_a", "-a", "a b", "node_modules", "a%2fb", "é", "a:b"]
        {
            assert!(normalise(Language::Javascript, wrong).is_err(), "{wrong}");
        }
    }
}
