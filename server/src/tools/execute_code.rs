//! `execute_code`: one program, in a fresh VM or in a session.

use rmcp::model::CallToolResult;
use sandbox_engine::{ExecuteError, Request};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::files::{Contents, FileInput, OutputFile};
use sandbox_schemas::limits::FILE_READ_DEFAULT_BYTES;
use sandbox_schemas::outcome::{ErrorCode, ExecuteOutcome};
use schemars::schema_for;
use serde::Serialize;

use crate::mcp::progress;
use crate::mcp::tool_error::ToolError;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, files, hold, invalid, reinstall};

pub(crate) async fn call(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let mut input: ExecuteInput = call.input(|| schema_for!(ExecuteInput))?;
    // Before the engine is asked for: bad input is bad input also where nothing is installed.
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let arrival = call.context.arrival.clone();
    if input.session_id.is_none() {
        arrival.let_pass();
    }
    let _held = hold(&call.context, size_bytes(&input))?;
    let engine = engine_for(&call.context).await?;

    let (timeout_seconds, background) = (input.timeout_seconds(), input.background);
    let mut files = Vec::new();
    for (index, file) in std::mem::take(&mut input.files).into_iter().enumerate() {
        let source = files::source(&call.context, file).await;
        files.push(source.map_err(|error| invalid(format!("files[{index}].{error}")))?);
    }
    let request = Request { input, files };
    let cancel = call.context.cancel.clone();
    if background {
        // What it writes is for `get_run`; what is told here is of packages that are installed for it.
        let starting = |mut sink| async move { engine.execute_in_background(request, &mut sink, cancel).await };
        return Ok(shown::result(call.results, arrival.begin(progress::report(call.channel(), starting)).await?));
    }
    let execution = |mut sink| async move { engine.execute(request, &mut sink, cancel).await };
    let outcome = arrival.begin(progress::report(call.channel(), execution)).await?;
    Ok(shown::result(call.results, Executed { outcome, timeout_seconds }))
}

/// What a call holds while it waits.
fn size_bytes(input: &ExecuteInput) -> usize {
    let env: usize = input.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    let files: usize = input.files.iter().map(FileInput::inline_bytes).sum();
    input.code.len() + input.stdin.len() + env + files
}

/// A program that ran, and for how long it might.
#[derive(Serialize)]
struct Executed {
    #[serde(flatten)]
    outcome: ExecuteOutcome,
    #[serde(skip)]
    timeout_seconds: u64,
}

impl Shown for Executed {
    fn blocks(&mut self) -> Vec<Block> {
        let ExecuteOutcome { stdout, stderr, .. } = &mut self.outcome;
        let mut blocks = shown::streams(std::mem::take(stdout), std::mem::take(stderr));
        blocks.extend(self.outcome.files.iter().flat_map(file));
        let unusual = self.unusual();
        if !unusual.is_empty() {
            blocks.push(Block::text(unusual.join("; ")));
        } else if blocks.is_empty() {
            blocks.push(Block::text("(no output)".into()));
        }
        blocks
    }
}

/// A file that was left: its name, and what can be seen of it. All of it is in the figures.
fn file(file: &OutputFile) -> Vec<Block> {
    let OutputFile { path, size_bytes, contents: Contents { text, base64, mime_type }, omitted } = file;
    match (text, base64, mime_type, omitted) {
        (Some(text), ..) => vec![Block::text(format!("{path}:\n{}", beginning(text)))],
        (None, Some(base64), Some(mime_type), _) => {
            vec![Block::text(format!("{path}:")), Block::picture(base64.clone(), mime_type)]
        }
        (.., Some(reason)) => vec![Block::text(format!("{path}: {size_bytes} bytes; {reason}"))],
        _ => vec![Block::text(format!("{path}: {size_bytes} bytes"))],
    }
}

/// As much of a text as `read_file` would return.
fn beginning(text: &str) -> String {
    let most = usize::try_from(FILE_READ_DEFAULT_BYTES).unwrap_or(usize::MAX);
    if text.len() <= most {
        return text.to_owned();
    }
    // Not within a character.
    let end = (0..=most).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    format!("{}\n(the beginning of {} bytes)", &text[..end], text.len())
}

impl Executed {
    /// What a reader has to know who sees the output alone.
    fn unusual(&self) -> Vec<String> {
        let outcome = &self.outcome;
        let mut unusual = Vec::new();
        if outcome.timed_out {
            unusual.push(format!("timed out after {} s", self.timeout_seconds));
        } else if outcome.exit_code != 0 {
            unusual.push(format!("exit code {}", outcome.exit_code));
        }
        if outcome.state_lost {
            unusual.push("an interpreter has ended: its variables are lost, files are there".into());
        }
        if !outcome.unmatched.is_empty() {
            unusual.push(format!("no file matches {}", outcome.unmatched.join(", ")));
        }
        unusual.extend(outcome.files_note.clone());
        if outcome.truncated {
            let (stdout, stderr) = (outcome.stdout_bytes, outcome.stderr_bytes);
            unusual.push(format!("output cut: only the beginning of {stdout} bytes of stdout and {stderr} of stderr"));
        }
        unusual
    }
}

impl From<ExecuteError> for ToolError {
    fn from(error: ExecuteError) -> Self {
        // A cancelled call is not answered; should it be read after all, nothing is known of it.
        let code = error.code().unwrap_or(ErrorCode::OutcomeUnknown);
        ToolError { retry_after: error.retry_after(), ..ToolError::new(code, reinstall(code, error.to_string())) }
    }
}
