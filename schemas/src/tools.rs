//! The tools that the server advertises, one row each. `schemas/tools/*.json` is generated from here and golden-tested.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::background::{GetRunInput, InputSent, RunReport, RunStarted, SendInput, StopRunInput};
use crate::execute::ExecuteInput;
use crate::files::{ListInput, ListOutcome, ReadInput, ReadOutcome, WriteInput, WriteOutcome};
use crate::install::{InstallInput, InstallOutcome};
use crate::outcome::ExecuteOutcome;
use crate::session::{CloseInput, CloseOutcome, OpenInput, OpenOutcome};
use crate::status::{PoolStatus, StatusInput};

/// What a client is told of a tool.
pub struct ToolSpec {
    /// Stable name, as in `tools/call`.
    pub name: &'static str,
    /// Short name for people.
    pub title: &'static str,
    /// What a model reads to decide when and how to call it. Clients cut it at 2 KB.
    pub description: &'static str,
    /// Schema of the arguments.
    pub input: fn() -> Schema,
    /// Schema of `structuredContent`.
    pub output: fn() -> Schema,
    /// What the tool can do to the world outside.
    pub hints: Hints,
}

/// MCP's tool annotations. The protocol's defaults are the worst case, so each is said.
pub struct Hints {
    /// Changes nothing.
    pub read_only: bool,
    /// Can destroy something outside its own VM.
    pub destructive: bool,
    /// A repeated call has no further effect.
    pub idempotent: bool,
    /// Reaches beyond this machine.
    pub open_world: bool,
}

/// What clients tell their model of this server as a whole. They cut it at 2 KB.
pub const INSTRUCTIONS: &str = "Runs programs in throw-away virtual machines on the user's own computer. Call \
    execute_code with a whole program; nothing is kept between calls, unless you name a session (open_session), which keeps \
    variables and files. There is no network: name the PyPI or npm packages that \
    a program needs in packages. A program that fails is a normal result: read its exit code and stderr. Errors of the sandbox itself \
    begin with a code: invalid_input, not_found, refused, install_failed, capacity, not_installed and failed_before_run mean that \
    nothing ran; outcome_unknown means that it may have.";

/// Name of the tool that runs a program.
pub const EXECUTE_CODE: &str = "execute_code";

/// Name of the tool that installs packages.
pub const INSTALL_PACKAGES: &str = "install_packages";

/// Name of the tool that tells how the sandbox is doing.
pub const POOL_STATUS: &str = "pool_status";

/// Name of the tool that opens a session.
pub const OPEN_SESSION: &str = "open_session";

/// Name of the tool that ends a session.
pub const CLOSE_SESSION: &str = "close_session";

/// Name of the tool that tells what has become of a program in the background.
pub const GET_RUN: &str = "get_run";

/// Name of the tool that writes to the standard input of a program in the background.
pub const SEND_INPUT: &str = "send_input";

/// Name of the tool that ends a program in the background.
pub const STOP_RUN: &str = "stop_run";

/// Name of the tool that puts a file into a session.
pub const WRITE_FILE: &str = "write_file";

/// Name of the tool that takes a file out of a session.
pub const READ_FILE: &str = "read_file";

/// Name of the tool that tells what files a session has.
pub const LIST_FILES: &str = "list_files";

/// Every tool.
pub const TOOLS: &[ToolSpec] = &[
    EXECUTE_CODE_SPEC,
    OPEN_SESSION_SPEC,
    CLOSE_SESSION_SPEC,
    GET_RUN_SPEC,
    SEND_INPUT_SPEC,
    STOP_RUN_SPEC,
    WRITE_FILE_SPEC,
    READ_FILE_SPEC,
    LIST_FILES_SPEC,
    INSTALL_PACKAGES_SPEC,
    POOL_STATUS_SPEC,
];

const EXECUTE_CODE_SPEC: ToolSpec = ToolSpec {
    name: EXECUTE_CODE,
    title: "Execute code",
    description: "Runs a Python, JavaScript/TypeScript or shell program in a fresh virtual machine on this computer and \
        returns its exit code, stdout and stderr. Nothing is kept between calls, except in a session: there variables, imports and \
        files stay, and the value of a last expression is shown. The program runs as a script in the \
        writable directory /workspace; without network (loopback works): name the packages that it needs in packages, \
        instead of calling pip or npm. Print what you want to see; files that you want \
        back, name in outputs. Python 3.13; Node.js LTS with top-level await, import and require; bash with git, \
        curl, jq, make and the usual tools. A program that fails \
        is a normal result with its exit code and stderr; one that runs for longer than timeout_seconds is ended, and says so. \
        Example: {\"language\": \"python\", \"packages\": [\"pandas\"], \"code\": \
        \"import pandas as pd\\nprint(pd.Series([1, 2, 6]).mean())\"}",
    input: input_schema_of::<ExecuteInput>,
    output: || either(schema_of::<ExecuteOutcome>(), schema_of::<RunStarted>()),
    // Its program changes nothing outside its VM; packages that it names are fetched, and change the cache.
    hints: Hints { read_only: false, destructive: false, idempotent: false, open_world: true },
};

/// What a program does that runs in a VM that stays: nothing outside it.
const WITHIN_A_VM: Hints = Hints { read_only: false, destructive: false, idempotent: false, open_world: false };

const OPEN_SESSION_SPEC: ToolSpec = ToolSpec {
    name: OPEN_SESSION,
    title: "Open a session",
    description: "Opens a virtual machine that stays for several calls of execute_code, and returns its session_id. All \
        languages share its /workspace. Close it when the work is done; it ends by itself when it is not used for some time. \
        Example: {\"packages\": [\"pandas\"]}",
    input: input_schema_of::<OpenInput>,
    output: schema_of::<OpenOutcome>,
    hints: Hints { read_only: false, destructive: false, idempotent: false, open_world: true },
};

const CLOSE_SESSION_SPEC: ToolSpec = ToolSpec {
    name: CLOSE_SESSION,
    title: "Close a session",
    description: "Ends a session, its programs and its files. Example: {\"session_id\": \"s-0123456789abcdef\"}",
    input: input_schema_of::<CloseInput>,
    output: schema_of::<CloseOutcome>,
    hints: WITHIN_A_VM,
};

const GET_RUN_SPEC: ToolSpec = ToolSpec {
    name: GET_RUN,
    title: "Look at a background run",
    description: "Returns the new output of a program that execute_code has started with background: true, and its exit code \
        when it has ended. Its result is kept for 10 minutes. Example: {\"run_id\": \"r-0123456789abcdef\", \"wait_seconds\": 20}",
    input: input_schema_of::<GetRunInput>,
    output: schema_of::<RunReport>,
    hints: WITHIN_A_VM,
};

const SEND_INPUT_SPEC: ToolSpec = ToolSpec {
    name: SEND_INPUT,
    title: "Write to a background run",
    description: "Writes to the standard input of a program in the background, as for prompts and REPLs. \
        Example: {\"run_id\": \"r-0123456789abcdef\", \"text\": \"yes\\n\"}",
    input: input_schema_of::<SendInput>,
    output: schema_of::<InputSent>,
    hints: WITHIN_A_VM,
};

const STOP_RUN_SPEC: ToolSpec = ToolSpec {
    name: STOP_RUN,
    title: "Stop a background run",
    description: "Interrupts a program in the background, kills it if it does not end, and returns its new output and exit \
        code. Example: {\"run_id\": \"r-0123456789abcdef\"}",
    input: input_schema_of::<StopRunInput>,
    output: schema_of::<RunReport>,
    hints: WITHIN_A_VM,
};

const WRITE_FILE_SPEC: ToolSpec = ToolSpec {
    name: WRITE_FILE,
    title: "Write a file",
    description: "Puts a file into a session, in the place of one that is there. \
        Example: {\"session_id\": \"s-0123456789abcdef\", \"path\": \"in.csv\", \"text\": \"a,b\\n1,2\\n\"}",
    input: input_schema_of::<WriteInput>,
    output: schema_of::<WriteOutcome>,
    hints: WITHIN_A_VM,
};

const READ_FILE_SPEC: ToolSpec = ToolSpec {
    name: READ_FILE,
    title: "Read a file",
    description: "Returns a file of a session: text, a picture, or base64. \
        Example: {\"session_id\": \"s-0123456789abcdef\", \"path\": \"plot.png\"}",
    input: input_schema_of::<ReadInput>,
    output: schema_of::<ReadOutcome>,
    // Where a folder of the user's is shared for writing, it may replace what is there.
    hints: Hints { read_only: false, destructive: true, idempotent: true, open_world: false },
};

const LIST_FILES_SPEC: ToolSpec = ToolSpec {
    name: LIST_FILES,
    title: "List files",
    description: "Lists the files of a session. Example: {\"session_id\": \"s-0123456789abcdef\", \"recursive\": true}",
    input: input_schema_of::<ListInput>,
    output: schema_of::<ListOutcome>,
    hints: Hints { read_only: true, destructive: false, idempotent: true, open_world: false },
};

const INSTALL_PACKAGES_SPEC: ToolSpec = ToolSpec {
    name: INSTALL_PACKAGES,
    title: "Install packages",
    description: "Installs Python packages from PyPI or JavaScript packages from npm for programs that execute_code runs, and \
        returns an environment_id for it and the exact versions. The first time takes seconds to minutes; after that the set is \
        kept, and a program that names it starts as quickly as one without, with the packages imported already. \
        execute_code installs what its own packages argument names, so call this to install ahead, to see versions, or to share \
        a set by its environment_id. Wheels only, and no install scripts. By default only the 10,000 most used names of each \
        registry are allowed, dependencies included; a refusal names the package and what was probably meant. \
        Example: {\"language\": \"javascript\", \"packages\": [\"lodash\"]}",
    input: input_schema_of::<InstallInput>,
    output: schema_of::<InstallOutcome>,
    // It changes the cache of this tool alone.
    hints: Hints { read_only: false, destructive: false, idempotent: true, open_world: true },
};

const POOL_STATUS_SPEC: ToolSpec = ToolSpec {
    name: POOL_STATUS,
    title: "Sandbox status",
    description: "Tells how the sandbox on this computer is doing: what executes its virtual machines (kvm or tcg), how many \
        wait, run or are queued, how long runs have taken, how much memory they use, and the limits in force. Runs nothing. \
        Not needed before execute_code; useful when calls are slow or refused with the code capacity. Example: {}",
    input: input_schema_of::<StatusInput>,
    output: schema_of::<PoolStatus>,
    hints: Hints { read_only: true, destructive: false, idempotent: true, open_world: false },
};

impl ToolSpec {
    /// The tool as `tools/list` shows it to clients of the newest version.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "inputSchema": (self.input)(),
            "outputSchema": (self.output)(),
            "annotations": {
                "title": self.title,
                "readOnlyHint": self.hints.read_only,
                "destructiveHint": self.hints.destructive,
                "idempotentHint": self.hints.idempotent,
                "openWorldHint": self.hints.open_world,
            },
        })
    }
}

fn schema_of<T: JsonSchema>() -> Schema {
    // Sub-schemas are inlined: several clients do not follow `$ref`.
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let settings = settings.with_transform(RecursiveTransform(remove_rust_formats));
    let settings = settings.with_transform(RecursiveTransform(split_types));
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    // The type's name and description speak of Rust, not of the tool; the dialect is what MCP takes for granted.
    for name in ["title", "description", "$schema"] {
        schema.remove(name);
    }
    schema
}

/// One of two objects. MCP wants it to say that it is one.
fn either(one: Schema, other: Schema) -> Schema {
    schemars::json_schema!({ "type": "object", "anyOf": [one, other] })
}

/// Arguments as those take them that convert schemas for models, some of which know little of JSON Schema: always with
/// `properties`; without a bar to other fields, which stay refused; without `default`, which strict ones do not know and the
/// descriptions tell.
fn input_schema_of<T: JsonSchema>() -> Schema {
    let mut schema = schema_of::<T>();
    RecursiveTransform(plain).transform(&mut schema);
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("properties").or_insert_with(|| json!({}));
    }
    schema
}

fn plain(schema: &mut Schema) {
    for keyword in ["additionalProperties", "default"] {
        schema.remove(keyword);
    }
}

/// `uint64`, `double` and the like are schemars' own; strict validators refuse a format that they do not know.
fn remove_rust_formats(schema: &mut Schema) {
    let is_number = |kind: &Value| kind == "integer" || kind == "number";
    let has_number = |kind: &Value| is_number(kind) || kind.as_array().is_some_and(|kinds| kinds.iter().any(is_number));
    if schema.get("type").is_some_and(has_number) {
        schema.remove("format");
    }
}

/// A list of types is legal, and some clients know schemas of one type only.
fn split_types(schema: &mut Schema) {
    if let Some(Value::Array(types)) = schema.get("type") {
        let branches: Vec<Value> = types.iter().map(|kind| json!({ "type": kind })).collect();
        schema.remove("type");
        schema.insert("anyOf".into(), branches.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The generated schemas are kept in the tree, so that a change of the interface shows in a diff.
    /// `UPDATE_GOLDEN=1 cargo test -p sandbox-schemas` writes them anew.
    #[test]
    fn schemas_equal_their_golden_files() {
        for tool in TOOLS {
            let generated = serde_json::to_string_pretty(&tool.to_json()).unwrap() + "\n";
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tools/{}.json", tool.name));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &generated).unwrap();
            }
            let golden = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(golden == generated, "{} differs; generated is:\n{generated}", path.display());
        }
    }

    #[test]
    fn no_golden_file_is_left_over() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(TOOLS.iter().any(|tool| format!("{}.json", tool.name) == name), "{name} has no tool");
        }
    }

    /// Every `format` in a schema. A property of that name would be an object, and is none.
    fn formats(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                found.extend(fields.get("format").and_then(Value::as_str).map(String::from));
                fields.values().for_each(|field| formats(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| formats(item, found)),
            _ => {}
        }
    }

    #[test]
    fn only_formats_of_the_standard_are_advertised() {
        // JSON Schema 2020-12, validation, section 7.3.
        const STANDARD: [&str; 19] = [
            "date-time",
            "date",
            "time",
            "duration",
            "email",
            "idn-email",
            "hostname",
            "idn-hostname",
            "ipv4",
            "ipv6",
            "uri",
            "uri-reference",
            "iri",
            "iri-reference",
            "uuid",
            "uri-template",
            "json-pointer",
            "relative-json-pointer",
            "regex",
        ];
        for tool in TOOLS {
            let mut found = Vec::new();
            formats((tool.input)().as_value(), &mut found);
            formats((tool.output)().as_value(), &mut found);
            found.retain(|format| !STANDARD.contains(&format.as_str()));
            assert!(found.is_empty(), "{}: {found:?}", tool.name);
        }
    }

    #[test]
    fn no_schema_has_a_list_of_types() {
        for tool in TOOLS {
            let schemas = tool.to_json().to_string();
            assert!(!schemas.contains(r#""type":["#), "{}", tool.name);
        }
    }

    /// Every keyword in a schema's own places, with the fields of objects left out.
    fn keywords(schema: &Value, found: &mut Vec<String>) {
        for (keyword, value) in schema.as_object().into_iter().flatten() {
            found.push(keyword.clone());
            match (keyword.as_str(), value) {
                ("properties", Value::Object(fields)) => fields.values().for_each(|field| keywords(field, found)),
                ("items", items) => keywords(items, found),
                _ => {}
            }
        }
    }

    /// What Gemini's declarations of functions and OpenAI's strict mode have in common.
    #[test]
    fn arguments_are_told_in_words_that_every_converter_knows() {
        const KNOWN: [&str; 8] =
            ["description", "enum", "items", "maximum", "minimum", "properties", "required", "type"];
        for tool in TOOLS {
            let input = (tool.input)().to_value();
            assert!(input["properties"].is_object() && input["type"] == "object", "{}", tool.name);
            let mut found = Vec::new();
            keywords(&input, &mut found);
            found.retain(|keyword| !KNOWN.contains(&keyword.as_str()));
            assert!(found.is_empty(), "{}: {found:?}", tool.name);
            // An object within would be one of any names, for which strict modes have no form.
            for (name, property) in input["properties"].as_object().unwrap() {
                assert!(property["type"].is_string() && property["type"] != "object", "{}: {name}", tool.name);
                assert!(property["description"].as_str().unwrap().len() < 1000, "{}: {name}", tool.name);
            }
        }
    }

    #[test]
    fn descriptions_fit_what_clients_show() {
        for tool in TOOLS {
            assert!(tool.description.len() < 1000, "{}: {} bytes", tool.name, tool.description.len());
            assert!(tool.description.contains("Example: {"), "{}", tool.name);
        }
        assert!(INSTRUCTIONS.len() < 2000, "the instructions are cut by clients");
    }
}
