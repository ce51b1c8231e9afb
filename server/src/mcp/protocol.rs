//! The two eras of MCP. Legacy (up to 2025-11-25) agrees on a version once, with `initialize`; modern (2026-07-28) says it
//! in every request's `_meta`. A connection is not locked to an era: clients have been seen to mix them.

use std::sync::RwLock;

use jsonrpsee::types::error::{ErrorObject, ErrorObjectOwned, INVALID_PARAMS_CODE, INVALID_REQUEST_CODE};
use rmcp::model::{
    CallToolResult, Implementation, JsonObject, ProgressNotificationParam, ProgressToken, ProtocolVersion,
    ServerCapabilities, TASKS_EXTENSION_ID, ToolsCapability,
};
use sandbox_schemas::outcome::ErrorCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::mcp::log::Level;
use crate::mcp::tasks::Tasks;
use crate::mcp::tool_error::ToolError;
use crate::rpc::message::error;
use crate::settings::Results;

/// MCP's code for a version that the server does not speak.
const UNSUPPORTED_VERSION_CODE: i32 = -32022;

const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL_KEY: &str = "io.modelcontextprotocol/logLevel";
const SERVER_INFO_KEY: &str = "io.modelcontextprotocol/serverInfo";

/// How long a client may keep a list or a discovery, in milliseconds: they change with the binary only.
const LIST_TTL_MS: u64 = 3_600_000;

/// What a connection has agreed on.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    negotiated: RwLock<Option<ProtocolVersion>>,
    /// Calls that have become tasks.
    pub(crate) tasks: Tasks,
}

/// The rules for one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Era {
    /// No version is known: a bare request, as from `echo`.
    Bare,
    Legacy(ProtocolVersion),
    Modern,
}

impl Connection {
    /// Answers `initialize`: the asked version where it is known, else the newest that has `initialize`.
    pub(crate) fn negotiate(&self, asked: &ProtocolVersion) -> ProtocolVersion {
        let known = ProtocolVersion::known_up_to(&ProtocolVersion::LATEST_WITH_INITIALIZE);
        let version = if known.contains(asked) { asked.clone() } else { ProtocolVersion::LATEST_WITH_INITIALIZE };
        if let Ok(mut negotiated) = self.negotiated.write() {
            *negotiated = Some(version.clone());
        }
        version
    }

    /// Batches were part of one version alone. A bare client may use JSON-RPC's.
    pub(crate) fn allows_batches(&self) -> bool {
        self.negotiated().is_none_or(|version| version == ProtocolVersion::V_2025_03_26)
    }

    /// What was agreed on last.
    pub(crate) fn negotiated(&self) -> Option<ProtocolVersion> {
        self.negotiated.read().ok().and_then(|version| version.clone())
    }
}

/// The era that a request belongs to, by its `_meta` and by what its connection had agreed on when it came.
pub(crate) fn era(agreed: Option<&ProtocolVersion>, meta: &Map<String, Value>) -> Result<Era, ErrorObjectOwned> {
    let Some(version) = meta.get(VERSION_KEY) else {
        return Ok(agreed.cloned().map_or(Era::Bare, Era::Legacy));
    };
    if !version.is_string() {
        let message = format!("Invalid params: _meta[\"{VERSION_KEY}\"] must be a string");
        return Err(error(INVALID_PARAMS_CODE, message));
    }
    if version != ProtocolVersion::V_2026_07_28.as_str() {
        // Those that a request can be of by its `_meta`; the others are agreed on with `initialize`.
        let data = json!({ "supported": [ProtocolVersion::V_2026_07_28], "requested": version });
        return Err(ErrorObject::owned(UNSUPPORTED_VERSION_CODE, "Unsupported protocol version", Some(data)));
    }
    if lacks_capabilities(meta) {
        return Err(missing(&[CAPABILITIES_KEY]));
    }
    Ok(Era::Modern)
}

/// The error of a request that only the modern era has, without that era's fields: names those that are missing.
pub(crate) fn not_modern(meta: &Map<String, Value>) -> ErrorObjectOwned {
    if lacks_capabilities(meta) { missing(&[VERSION_KEY, CAPABILITIES_KEY]) } else { missing(&[VERSION_KEY]) }
}

fn lacks_capabilities(meta: &Map<String, Value>) -> bool {
    !meta.get(CAPABILITIES_KEY).is_some_and(Value::is_object)
}

fn missing(keys: &[&str]) -> ErrorObjectOwned {
    let fields: Vec<String> = keys.iter().map(|key| format!("_meta[\"{key}\"]")).collect();
    error(INVALID_PARAMS_CODE, format!("Invalid params: missing {}", fields.join(" and ")))
}

/// A notification of progress, and whose text is in it.
#[derive(Debug, Serialize)]
pub(crate) struct ToldProgress {
    #[serde(flatten)]
    params: ProgressNotificationParam,
    #[serde(rename = "_meta", skip_serializing_if = "Option::is_none")]
    meta: Option<ProgressMeta>,
}

#[derive(Debug, Serialize)]
struct ProgressMeta {
    /// How many characters of the message are whose, in their order.
    #[serde(rename = "sandbox-mcp/streams")]
    streams: Vec<(&'static str, usize)>,
}

impl Era {
    /// Who reads results: whoever introduces itself has a model behind it, a bare request comes from a program.
    pub(crate) fn results(&self) -> Results {
        match self {
            Era::Bare => Results::Data,
            Era::Legacy(_) | Era::Modern => Results::Model,
        }
    }

    /// Whether a version that is older than this one was agreed on.
    fn is_before(&self, version: &ProtocolVersion) -> bool {
        matches!(self, Era::Legacy(agreed) if agreed.as_str() < version.as_str())
    }

    /// Batches were part of one version alone: what is modern by its own `_meta` is never in one.
    pub(crate) fn check_batch(&self, is_in_batch: bool) -> Result<(), ErrorObjectOwned> {
        if is_in_batch && *self == Era::Modern {
            return Err(error(INVALID_REQUEST_CODE, "Invalid Request: this version has no batches"));
        }
        Ok(())
    }

    /// How severe what a request wants to be told of must be. Before, a connection says that once, with `logging/setLevel`.
    pub(crate) fn log_level(&self, meta: &Map<String, Value>) -> Result<Option<Level>, ErrorObjectOwned> {
        match meta.get(LOG_LEVEL_KEY) {
            Some(level) if *self == Era::Modern && !level.is_null() => {
                let level = Level::deserialize(level);
                let invalid =
                    |fault| error(INVALID_PARAMS_CODE, format!("Invalid params: _meta[\"{LOG_LEVEL_KEY}\"]: {fault}"));
                level.map(Some).map_err(invalid)
            }
            _ => Ok(None),
        }
    }

    /// A notification of progress. The first version had no text in it.
    pub(crate) fn progress(
        &self,
        token: &ProgressToken,
        progress: usize,
        text: &str,
        streams: Option<Vec<(&'static str, usize)>>,
    ) -> ToldProgress {
        let params = ProgressNotificationParam::new(token.clone(), progress as f64);
        if self.is_before(&ProtocolVersion::V_2025_03_26) {
            return ToldProgress { params, meta: None };
        }
        ToldProgress { params: params.with_message(text), meta: streams.map(|streams| ProgressMeta { streams }) }
    }

    /// An error of a tool is a result, which models read. Before 2025-11-25 invalid arguments were the protocol's error.
    pub(crate) fn tool_error(&self, fault: ToolError) -> Result<CallToolResult, ErrorObjectOwned> {
        if fault.code == ErrorCode::InvalidInput && self.is_before(&ProtocolVersion::V_2025_11_25) {
            let message = format!("Invalid params: {}", fault.message);
            return Err(ErrorObject::owned(INVALID_PARAMS_CODE, message, Some(fault.to_json())));
        }
        Ok(fault.into())
    }

    /// Makes a result what this era's clients expect.
    pub(crate) fn shape(&self, mut result: Value) -> Value {
        let Some(fields) = result.as_object_mut() else { return result };
        match self {
            Era::Modern => {
                fields.entry("resultType").or_insert_with(|| "complete".into());
                let meta = fields.entry("_meta").or_insert_with(|| json!({}));
                meta[SERVER_INFO_KEY] = json!(server_info());
                if ["tools", "supportedVersions"].iter().any(|name| fields.contains_key(*name)) {
                    fields.insert("ttlMs".into(), LIST_TTL_MS.into());
                    fields.insert("cacheScope".into(), "public".into());
                }
            }
            Era::Bare => drop(fields.remove("resultType")),
            Era::Legacy(version) => {
                fields.remove("resultType");
                strip_newer(fields, version);
            }
        }
        result
    }
}

/// Takes out what a version does not know yet.
fn strip_newer(fields: &mut Map<String, Value>, version: &ProtocolVersion) {
    let mut newer = Vec::new();
    if version.as_str() < ProtocolVersion::V_2025_03_26.as_str() {
        newer.push("annotations");
    }
    if version.as_str() < ProtocolVersion::V_2025_06_18.as_str() {
        newer.extend(["title", "outputSchema"]);
        fields.remove("structuredContent");
        if let Some(server) = fields.get_mut("serverInfo").and_then(Value::as_object_mut) {
            server.remove("title");
        }
    }
    let tools = fields.get_mut("tools").and_then(Value::as_array_mut);
    for tool in tools.into_iter().flatten().filter_map(Value::as_object_mut) {
        newer.iter().for_each(|name| drop(tool.remove(*name)));
    }
}

pub(crate) fn supported_versions() -> Vec<ProtocolVersion> {
    ProtocolVersion::KNOWN_VERSIONS.iter().rev().cloned().collect()
}

pub(crate) fn server_info() -> Implementation {
    Implementation::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).with_title("Local code sandbox")
}

pub(crate) fn capabilities() -> ServerCapabilities {
    let mut capabilities = ServerCapabilities::default();
    capabilities.tools = Some(ToolsCapability::default());
    capabilities.logging = Some(JsonObject::new());
    capabilities
}

/// The same with what only the modern era has.
pub(crate) fn modern_capabilities() -> ServerCapabilities {
    let mut capabilities = capabilities();
    capabilities.extensions = Some([(TASKS_EXTENSION_ID.to_owned(), JsonObject::new())].into());
    capabilities
}

/// Whether a client says that it takes a task for a result.
pub(crate) fn knows_tasks(meta: &Map<String, Value>) -> bool {
    meta.get(CAPABILITIES_KEY).is_some_and(|capabilities| capabilities["extensions"][TASKS_EXTENSION_ID].is_object())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(version: &str) -> Map<String, Value> {
        let meta = json!({ VERSION_KEY: version, CAPABILITIES_KEY: {} });
        meta.as_object().unwrap().clone()
    }

    #[test]
    fn initialize_answers_the_asked_version_where_it_is_known_and_has_a_handshake() {
        let connection = Connection::default();
        for (asked, answered) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-11-25", "2025-11-25"),
            ("2026-07-28", "2025-11-25"),
            ("1999-01-01", "2025-11-25"),
        ] {
            let asked: ProtocolVersion = serde_json::from_value(asked.into()).unwrap();
            assert_eq!(connection.negotiate(&asked).as_str(), answered);
        }
    }

    #[test]
    fn a_modern_request_is_modern_also_after_initialize() {
        let connection = Connection::default();
        let era_of = |meta: &Map<String, Value>| era(connection.negotiated().as_ref(), meta).unwrap();
        assert_eq!(era_of(&Map::new()), Era::Bare);
        connection.negotiate(&ProtocolVersion::V_2025_06_18);
        assert_eq!(era_of(&Map::new()), Era::Legacy(ProtocolVersion::V_2025_06_18));
        assert_eq!(era_of(&meta("2026-07-28")), Era::Modern);
    }

    #[test]
    fn what_a_modern_request_lacks_is_named() {
        let error = era(None, &meta("2027-01-01")).unwrap_err();
        assert_eq!(error.code(), UNSUPPORTED_VERSION_CODE);
        assert!(error.data().unwrap().get().contains("2027-01-01"));
        let mut incomplete = meta("2026-07-28");
        incomplete.remove(CAPABILITIES_KEY);
        let error = era(None, &incomplete).unwrap_err();
        assert_eq!(error.code(), INVALID_PARAMS_CODE);
        assert_eq!(error.message(), format!("Invalid params: missing _meta[\"{CAPABILITIES_KEY}\"]"));

        let both = format!("Invalid params: missing _meta[\"{VERSION_KEY}\"] and _meta[\"{CAPABILITIES_KEY}\"]");
        assert_eq!(not_modern(&Map::new()).message(), both);
        let mut unversioned = meta("2026-07-28");
        unversioned.remove(VERSION_KEY);
        assert_eq!(not_modern(&unversioned).message(), format!("Invalid params: missing _meta[\"{VERSION_KEY}\"]"));
    }

    #[test]
    fn results_have_the_fields_of_their_era_alone() {
        let result = json!({ "resultType": "complete", "tools": [{ "name": "a", "title": "A", "outputSchema": {}, "annotations": {} }] });
        let names = |era: Era| {
            let shaped = era.shape(result.clone());
            let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
            format!("{} | {}", keys(&shaped), keys(&shaped["tools"][0]))
        };
        assert_eq!(names(Era::Legacy(ProtocolVersion::V_2024_11_05)), "tools | name");
        assert_eq!(names(Era::Legacy(ProtocolVersion::V_2025_03_26)), "tools | annotations name");
        assert_eq!(names(Era::Legacy(ProtocolVersion::V_2025_06_18)), "tools | annotations name outputSchema title");
        assert_eq!(names(Era::Bare), "tools | annotations name outputSchema title");
        assert_eq!(names(Era::Modern), "_meta cacheScope resultType tools ttlMs | annotations name outputSchema title");
    }
}
