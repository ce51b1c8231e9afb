//! The advertised schemas, read by a validator as a client reads them: they accept what we accept and what we send.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use jsonschema::Validator;
use sandbox_schemas::accelerator::Accelerator;
use sandbox_schemas::environment::Omitted;
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::files::{Contents, OutputFile};
use sandbox_schemas::limits;
use sandbox_schemas::outcome::{ExecuteOutcome, Timing};
use sandbox_schemas::tools::{EXECUTE_CODE, TOOLS, ToolSpec};
use serde_json::{Value, json};

fn execute_code() -> &'static ToolSpec {
    TOOLS.iter().find(|tool| tool.name == EXECUTE_CODE).unwrap()
}

fn validator(schema: fn() -> schemars::Schema) -> Validator {
    let schema = schema().to_value();
    jsonschema::meta::validate(&schema).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

/// The error of an input by our own reckoning.
fn our_error(input: &Value) -> Option<String> {
    match serde_json::from_value::<ExecuteInput>(input.clone()) {
        Err(error) => Some(error.to_string()),
        Ok(input) => input.validate().err().map(|error| error.to_string()),
    }
}

/// A good input with one field changed.
fn with(field: &str, value: Value) -> Value {
    let mut input = json!({ "language": "python", "code": "print(1)" });
    input[field] = value;
    input
}

#[test]
fn what_we_accept_the_schema_accepts() {
    let validator = validator(execute_code().input);
    let variables: Vec<String> = (0..limits::ENV_MAX_VARIABLES).map(|n| format!("V{n}=")).collect();
    let mut inputs = vec![
        with("code", json!("é".repeat(limits::CODE_MAX_BYTES / 2))),
        with("stdin", json!("x".repeat(limits::STDIN_MAX_BYTES))),
        with("stdin", json!("\0")),
        with("env", json!(["A=b=c", "é="])),
        with("env", json!(variables)),
        with("packages", json!(["pandas"])),
        with("files", json!([{"path": "a", "text": ""}, {"path": "b", "base64": "eA==", "executable": true}])),
        with("outputs", json!(["out/**"])),
    ];
    inputs.extend(["python", "javascript", "shell"].map(|name| with("language", json!(name))));
    inputs.extend([json!(1), json!(300), json!(30.0), json!(3e1)].map(|number| with("timeout_seconds", number)));
    inputs.extend([json!(64), json!(2048), json!(512.0)].map(|number| with("memory_mb", number)));
    for input in inputs {
        let shown: String = input.to_string().chars().take(200).collect();
        assert_eq!(our_error(&input), None, "{shown}");
        assert!(validator.is_valid(&input), "{shown}");
    }
}

#[test]
fn what_the_schema_refuses_we_refuse() {
    let validator = validator(execute_code().input);
    let mut inputs = vec![
        json!({}),
        json!([]),
        json!({ "language": "python" }),
        json!({ "code": "1" }),
        with("code", json!(1)),
        with("code", Value::Null),
        with("language", json!("cobol")),
        with("stdin", Value::Null),
        with("env", json!("A=1")),
        with("env", json!([1])),
        with("packages", json!([1])),
        with("environment_id", json!(1)),
    ];
    let not_numbers = [json!("thirty"), json!(30.5), json!(-1), json!(-1.0), json!(1e30), Value::Null, json!(true)];
    for number in not_numbers.into_iter().chain([json!(0), json!(86_401), json!(86_401.0)]) {
        inputs.push(with("timeout_seconds", number));
    }
    inputs.extend([json!(63), json!(2049), json!(64.5)].map(|number| with("memory_mb", number)));
    for input in inputs {
        let shown: String = input.to_string().chars().take(200).collect();
        assert!(!validator.is_valid(&input), "{shown}");
        assert!(our_error(&input).is_some(), "{shown}");
    }
}

#[test]
fn only_what_a_schema_cannot_say_is_left_to_us() {
    let validator = validator(execute_code().input);
    for (input, expected) in [
        (with("colour", json!("red")), "unknown field `colour`"),
        // Only a run in the background may take longer.
        (with("timeout_seconds", json!(301)), "timeout_seconds: is 301; must be between 1 and 300"),
        (with("code", json!("")), "code: is empty"),
        (with("code", json!("#".repeat(limits::CODE_MAX_BYTES + 1))), "code: is 1048577 bytes"),
        (with("stdin", json!("x".repeat(limits::STDIN_MAX_BYTES + 1))), "stdin: is 4194305 bytes"),
        (with("packages", json!(vec!["a"; limits::PACKAGES_MAX + 1])), "packages: has 51 names"),
        (with("code", json!(" \n")), "code: is empty"),
        (with("code", json!("a\0")), "code: has a NUL byte"),
        // Characters are not bytes.
        (with("code", json!("é".repeat(limits::CODE_MAX_BYTES / 2 + 1))), "code: is 1048578 bytes"),
        (with("env", json!(["=x"])), "env: has a variable with an empty name"),
        (with("env", json!(["A"])), "invalid value: string \"A\", expected a string \"NAME=value\""),
        (with("env", json!(["A=".to_string() + &"x".repeat(limits::ENV_MAX_BYTES)])), "env: is 131075 bytes"),
    ] {
        assert!(validator.is_valid(&input), "{expected}");
        let error = our_error(&input).unwrap_or_default();
        assert!(error.starts_with(expected), "{error:?} instead of {expected:?}");
    }
}

/// What models and adapters send that the schema does not say.
#[test]
fn what_is_meant_is_understood_beside_the_schema() {
    let plain = serde_json::from_value::<ExecuteInput>(json!({ "language": "python", "code": "print(1)" })).unwrap();
    let read = |input: Value| serde_json::from_value::<ExecuteInput>(input).unwrap();
    for name in ["Python", "PY", "python3"] {
        assert_eq!(read(with("language", json!(name))), plain);
    }
    assert_eq!(read(with("environment_id", json!(""))), plain);
    assert_eq!(read(with("session_id", json!(""))), plain);
    assert_eq!(read(with("timeout_seconds", json!("30"))).timeout_seconds, Some(30));
    assert_eq!(read(with("packages", json!("pandas"))).packages, ["pandas"]);
    assert_eq!(read(with("env", json!({ "A": 1, "B": null }))), read(with("env", json!(["A=1"]))));
    assert_eq!(read(with("code", json!("```python\nprint(1)\n```"))).code, "\nprint(1)\n");
    let name = serde_json::from_value::<ExecuteInput>(with("env", json!({ "A=B": "x" }))).unwrap().validate();
    assert_eq!(name.unwrap_err().to_string(), "env: has the name \"A=B\"; a name must not contain '=' or a NUL byte");
}

#[test]
fn a_result_satisfies_the_output_schema() {
    let validator = validator(execute_code().output);
    let outcome = |exit_code, accelerator| ExecuteOutcome {
        state_lost: false,
        exit_code,
        stdout: "42\n\u{fffd}".into(),
        stderr: String::new(),
        timed_out: exit_code == -1,
        truncated: true,
        stdout_bytes: u64::MAX,
        stderr_bytes: 0,
        invalid_utf8: true,
        out_of_memory: false,
        timing: Timing { setup_ms: 0.25, boot_ms: 1000.0, connect_ms: 0.0, execute_ms: 1.5, total_ms: 1001.75 },
        execution_time_ms: 1.5,
        spawn_ms: Some(0.5),
        process_ms: Some(1.25),
        cpu_time_ms: Some(0.75),
        memory_peak_mb: Some(12.5),
        warm_pool_hit: false,
        template_hit: false,
        not_imported: vec![Omitted { name: "seaborn".into(), reason: "it starts a thread".into() }],
        files: vec![OutputFile {
            path: "a".into(),
            size_bytes: 1,
            contents: Contents { text: Some("b".into()), ..Contents::default() },
            omitted: None,
        }],
        unmatched: vec!["*.csv".into()],
        files_note: Some("2 more files match".into()),
        accelerator,
    };
    for exit_code in [-1, 0, 137, 255] {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let result = serde_json::to_value(outcome(exit_code, accelerator)).unwrap();
            assert!(validator.is_valid(&result), "{result}");
        }
    }
    // What is not known is left out.
    let unknown = ExecuteOutcome {
        spawn_ms: None,
        process_ms: None,
        cpu_time_ms: None,
        memory_peak_mb: None,
        not_imported: Vec::new(),
        ..outcome(-1, Accelerator::Kvm)
    };
    let unknown = serde_json::to_value(unknown).unwrap();
    assert!(validator.is_valid(&unknown) && unknown.get("cpu_time_ms").is_none(), "{unknown}");
    // The schema does say something.
    let good = serde_json::to_value(outcome(0, Accelerator::Tcg)).unwrap();
    for field in good.as_object().unwrap().keys() {
        let mut lacking = good.clone();
        lacking.as_object_mut().unwrap().remove(field);
        let may_lack = [
            "spawn_ms",
            "process_ms",
            "cpu_time_ms",
            "memory_peak_mb",
            "not_imported",
            "files",
            "unmatched",
            "files_note",
        ];
        let may_lack = may_lack.contains(&field.as_str());
        assert_eq!(validator.is_valid(&lacking), may_lack, "{field}");
        let mut unknown = good.clone();
        unknown[field] = json!(null);
        assert!(!validator.is_valid(&unknown), "{field} may be null");
        let mut wrong = good.clone();
        wrong[field] = json!([1]);
        assert!(!validator.is_valid(&wrong), "{field} may be anything");
    }
}
