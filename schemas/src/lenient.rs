//! What models and adapters send where a schema asks for something else, understood where there is no doubt about what is
//! meant: a number as text, one package instead of a list of one, a language by another of its names. All else is an error.
//!
//! For the arguments of tools alone, which are JSON. (That `null` means absent holds for every optional argument of every tool, and
//! is seen to before these are asked.)

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::language::Language;

/// A language by any of its names, in upper or lower case.
pub(crate) fn language<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Language, D::Error> {
    let name = String::deserialize(deserializer)?;
    Language::from_name(&name).ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&name), &"a language"))
}

/// An integer as JSON Schema has it: `30`, `30.0` and `3e1` are the same number. Some clients write all numbers as floats, some
/// as text.
pub(crate) fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
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
            whole(value).ok_or_else(|| E::invalid_value(Unexpected::Float(value), &self))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            let value = text.trim().parse().ok().and_then(whole);
            value.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_any(Integer)
}

/// The same where it may be left out.
pub(crate) fn maybe_integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    integer(deserializer).map(Some)
}

/// A language where it may be left out. Adapters that fill in every argument send an empty one.
pub(crate) fn maybe_language<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Language>, D::Error> {
    let Some(name) = absent_if_empty(deserializer)? else { return Ok(None) };
    let language = Language::from_name(&name);
    language.map(Some).ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&name), &"a language"))
}

fn whole(value: f64) -> Option<u64> {
    // Below that every integer has a float of its own. No limit is anywhere near.
    const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;
    (value.fract() == 0.0 && (0.0..EXACT_BELOW).contains(&value)).then_some(value as u64)
}

/// A list of texts; or one text: an item a line, or a list as JSON writes it. Models that may leave nothing out send empty ones.
pub(crate) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Texts;

    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            if let Some(items) = text.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                return json_strings(items).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self));
            }
            Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<String>, A::Error> {
            let mut texts = Vec::new();
            while let Some(item) = items.next_element::<String>()? {
                texts.push(item);
            }
            texts.retain(|text| !text.trim().is_empty());
            Ok(texts)
        }
    }
    deserializer.deserialize_any(Texts)
}

/// A truth value; `null` is none, and so none.
pub(crate) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<bool>::deserialize(deserializer)?.unwrap_or(false))
}

/// A list of what is no text. A model that may leave nothing out sends an empty one.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of objects")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let is_absent = text.trim().is_empty();
            if is_absent { Ok(Vec::new()) } else { Err(E::invalid_type(Unexpected::Str(text), &self)) }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                list.push(item);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_any(List(PhantomData))
}

/// The strings between the brackets of a JSON array that has no escapes in them. No name of a package has any.
fn json_strings(items: &str) -> Option<Vec<String>> {
    let items = items.trim();
    if items.is_empty() {
        return Some(Vec::new());
    }
    let quoted = |item: &str| {
        let item = item.trim();
        let quote = item.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let text = item.strip_prefix(quote)?.strip_suffix(quote)?;
        (!text.contains(['"', '\'', '\\'])).then(|| text.to_owned())
    };
    // A comma can be part of a specifier, so that only one between quotes separates.
    let quote = items.chars().next()?;
    let mut texts = Vec::new();
    let mut rest = items;
    while !rest.is_empty() {
        let end = rest.get(1..)?.find(quote)? + 2;
        texts.push(quoted(&rest[..end])?);
        rest = rest[end..].trim_start();
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None if rest.is_empty() => {}
            None => return None,
        }
    }
    Some(texts)
}

/// A text that is not empty. An adapter that fills in every argument has nothing else to say of one that is not there.
pub(crate) fn absent_if_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()))
}

/// Variables: an object of them, or a list of texts `NAME=value`. A value may be a number or a truth value; `null` is none.
pub(crate) fn variables<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Variables;

    impl<'de> Visitor<'de> for Variables {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings \"NAME=value\", or an object of strings")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut variables = BTreeMap::new();
            while let Some(item) = items.next_element::<String>()? {
                if item.trim().is_empty() {
                    continue;
                }
                let no_name = || de::Error::invalid_value(Unexpected::Str(&item), &"a string \"NAME=value\"");
                let (name, value) = item.split_once('=').ok_or_else(no_name)?;
                variables.insert(name.to_owned(), value.to_owned());
            }
            Ok(variables)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let is_absent = text.trim().is_empty();
            if is_absent { Ok(BTreeMap::new()) } else { Err(E::invalid_type(Unexpected::Str(text), &self)) }
        }

        fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
            let mut variables = BTreeMap::new();
            while let Some((name, value)) = fields.next_entry::<String, Scalar>()? {
                if let Scalar(Some(value)) = value {
                    variables.insert(name, value);
                }
            }
            Ok(variables)
        }
    }
    deserializer.deserialize_any(Variables)
}

/// What a variable's value can be written as.
struct Scalar(Option<String>);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(Some(text.to_owned())))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(Some(value.to_string())))
            }

            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(None))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// A program, out of the Markdown fence that may be around all of it. Its lines keep their numbers.
pub(crate) fn program<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(without_fence(&text).unwrap_or(text))
}

/// What is between a first line of a fence and its name, and a last one of the same fence; `None` where that is not all.
fn without_fence(text: &str) -> Option<String> {
    let opened = text.trim_start();
    let fence = &opened[..opened.len() - opened.trim_start_matches('`').len()];
    let (name, body) = opened[fence.len()..].split_once('\n')?;
    let is_name = name.trim().chars().all(|c| c.is_ascii_alphanumeric() || "+-_.#".contains(c));
    let body = body.trim_end().strip_suffix(fence)?;
    // Another fence within: this is a document, not a program.
    let is_whole = fence.len() >= 3 && is_name && (body.is_empty() || body.ends_with('\n')) && !body.contains(fence);
    let lines_before = text[..text.len() - opened.len()].matches('\n').count() + 1;
    is_whole.then(|| format!("{}{body}", "\n".repeat(lines_before)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What comes of a value, as JSON; or of the error its beginning.
    #[track_caller]
    fn check<T: Into<Value>>(read: impl Fn(Value) -> Result<T, serde_json::Error>, cases: &[(Value, Value)]) {
        for (given, expected) in cases {
            let found = read(given.clone()).map_or_else(|error| Value::from(error.to_string()), Into::into);
            assert!(found == *expected, "{given}: {found} instead of {expected}");
        }
    }

    #[test]
    fn a_language_has_several_names() {
        let read = |value| language(value).map(|language| language.name());
        check(
            read,
            &[
                (json!("Python"), json!("python")),
                (json!("py"), json!("python")),
                (json!("python3"), json!("python")),
                (json!("TypeScript"), json!("javascript")),
                (json!("ts"), json!("javascript")),
                (json!("JS"), json!("javascript")),
                (json!("node"), json!("javascript")),
                (json!("bash"), json!("shell")),
                (json!("sh"), json!("shell")),
                (json!("raw"), json!("shell")),
                (json!("cobol"), json!("invalid value: string \"cobol\", expected a language")),
            ],
        );
    }

    #[test]
    fn a_number_can_be_text() {
        check(
            integer,
            &[
                (json!("10"), json!(10)),
                (json!(" 10.0 "), json!(10)),
                (json!("ten"), json!("invalid value: string \"ten\", expected an integer")),
                (json!("10.5"), json!("invalid value: string \"10.5\", expected an integer")),
                (json!("-1"), json!("invalid value: string \"-1\", expected an integer")),
                (json!("NaN"), json!("invalid value: string \"NaN\", expected an integer")),
                (json!(true), json!("invalid type: boolean `true`, expected an integer")),
            ],
        );
    }

    #[test]
    fn packages_can_be_one_text() {
        check(
            texts,
            &[
                (json!(["a", "b"]), json!(["a", "b"])),
                (json!("pandas"), json!(["pandas"])),
                (json!("requests>=2,<3"), json!(["requests>=2,<3"])),
                (json!("pandas\nrequests>=2,<3\n"), json!(["pandas", "requests>=2,<3"])),
                (json!(r#"["pandas", "requests>=2,<3"]"#), json!(["pandas", "requests>=2,<3"])),
                (json!("['pandas']"), json!(["pandas"])),
                (json!("[]"), json!([])),
                (json!(""), json!([])),
                (json!([""]), json!([])),
                (json!("[pandas]"), json!("invalid value: string \"[pandas]\", expected a list of strings")),
                (
                    json!("[\"a\" \"b\"]"),
                    json!("invalid value: string \"[\\\"a\\\" \\\"b\\\"]\", expected a list of strings"),
                ),
                (json!([1]), json!("invalid type: integer `1`, expected a string")),
            ],
        );
    }

    #[test]
    fn variables_are_an_object_or_a_list() {
        let read = |value| variables(value).map(|variables| json!(variables));
        check(
            read,
            &[
                (
                    json!({"A": "b", "N": 1, "F": 1.5, "T": true, "X": null}),
                    json!({"A": "b", "F": "1.5", "N": "1", "T": "true"}),
                ),
                (json!(["A=b=c", "", "E="]), json!({"A": "b=c", "E": ""})),
                (json!(""), json!({})),
                (json!(["A"]), json!("invalid value: string \"A\", expected a string \"NAME=value\"")),
                (json!({"A": []}), json!("invalid type: sequence, expected a string")),
                (
                    json!("A=1"),
                    json!(
                        "invalid type: string \"A=1\", expected a list of strings \"NAME=value\", or an object of strings"
                    ),
                ),
            ],
        );
    }

    #[test]
    fn a_fence_around_all_of_a_program_is_none_of_it() {
        check(
            program,
            &[
                (json!("```python\nprint(1)\n```"), json!("\nprint(1)\n")),
                (json!("\n```\nprint(1)\n```\n"), json!("\n\nprint(1)\n")),
                (json!("````js\nx\n````"), json!("\nx\n")),
                (json!("print('```')"), json!("print('```')")),
                (json!("```python\nprint(1)"), json!("```python\nprint(1)")),
                (json!("```a\n1\n```\ntext\n```b\n2\n```"), json!("```a\n1\n```\ntext\n```b\n2\n```")),
                (json!("```"), json!("```")),
                (json!(""), json!("")),
            ],
        );
    }
}
