//! The file of settings: TOML, a key a setting.

use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::settings::SPECS;
use crate::settings::given::{Given, Origin, SettingError};

/// What a file sets. An unknown key is an error: nobody else writes into this file, so it is a mistake.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<Given>, SettingError> {
    let path: Arc<Path> = path.into();
    let at = |offset: usize| {
        let before = text.as_bytes().iter().take(offset);
        Origin::File { path: path.clone(), line: 1 + before.filter(|byte| **byte == b'\n').count() }
    };
    let table = DeTable::parse(text).map_err(|fault| SettingError::Syntax {
        origin: at(fault.span().map_or(0, |span| span.start)),
        reason: fault.message().to_string(),
    })?;
    let mut given = Vec::new();
    for (key, value) in table.get_ref().iter() {
        let origin = at(key.span().start);
        let Some(spec) = SPECS.iter().find(|spec| spec.key == key.get_ref().as_ref()) else {
            let known: Vec<_> = SPECS.iter().map(|spec| spec.key).collect();
            return Err(SettingError::Unknown { key: key.get_ref().to_string(), origin, known: known.join(", ") });
        };
        let written = text.get(value.span()).unwrap_or_default().lines().next().unwrap_or_default();
        given.push(Given {
            key: spec.key,
            text: plain(value.get_ref()).into(),
            written: written.to_string(),
            toml_type: Some(value.get_ref().type_str()),
            origin,
        });
    }
    // The first mistake from the top is told first; a table's order is by name.
    given.sort_by_key(|given| if let Origin::File { line, .. } = given.origin { line } else { 0 });
    Ok(given)
}

/// A value as an environment variable would have it. What no setting can be is refused by its type.
fn plain(value: &DeValue) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(is_true) => is_true.to_string(),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| number.to_string(), |number| number.to_string()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => String::new(),
    }
}
