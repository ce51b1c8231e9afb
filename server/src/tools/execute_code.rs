//! `execute_code`: one program, in a fresh VM or in a session.

use rmcp::model::CallToolResult;
use sandbox_engine::{ExecuteError, Request};
use sandbox_schemas::execute::ExecuteInput;
use sandbox_schemas::files::{Contents, FileInput, OutputFile};
use sandbox_schemas::limits::FILE_READ_DEFAULT_BYTES;
use sandbox_schemas::outcome::{ErrorCode, ExecuteOutcome};
use sandbox_schemas::tools::GET_RUN;
use schemars::schema_for;
use serde::Serialize;

use crate::mcp::progress;
use crate::mcp::tool_error::ToolError;
use crate::settings::Results;
use crate::tools::advice::Advisor;
use crate::tools::output::{self, Fitted, Whole};
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
    let (results, most) = (call.results, call.context.backend.max_output_chars());
    let asked = (results == Results::Model).then(|| (Advisor::of(&input), input.session_id.clone()));
    let request = Request { input, files };
    let cancel = call.context.cancel.clone();
    if background {
        // What it writes is for `get_run`; what is told here is of packages that are installed for it.
        let starting = |mut sink| async move { engine.execute_in_background(request, &mut sink, cancel).await };
        return Ok(shown::result(call.results, arrival.begin(progress::report(call.channel(), starting)).await?));
    }
    let executing = engine.clone();
    let execution = |mut sink| async move { executing.execute(request, &mut sink, cancel).await };
    let outcome = arrival.begin(progress::report(call.channel(), execution)).await?;
    let mut executed = Executed { outcome, whole: None, timeout_seconds, fitted: Fitted::default(), advice: None };
    if let Some((advisor, session)) = asked {
        let outcome = &executed.outcome;
        executed.fitted = output::fit(&outcome.stdout, &outcome.stderr, most);
        executed.advice = advisor.advice(outcome);
        let has_get_run = call.context.backend.has_tool(GET_RUN);
        executed.whole = executed.fitted.keep(&engine, session.as_deref(), outcome, has_get_run).await;
    }
    Ok(shown::result(results, executed))
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
    /// Where all of its output is, if that is not here.
    #[serde(skip_serializing_if = "Option::is_none")]
    whole: Option<Whole>,
    #[serde(skip)]
    timeout_seconds: u64,
    #[serde(skip)]
    fitted: Fitted,
    #[serde(skip)]
    advice: Option<String>,
}

impl Shown for Executed {
    fn blocks(&mut self) -> Vec<Block> {
        let ExecuteOutcome { stdout, stderr, .. } = &mut self.outcome;
        let (shown_stdout, shown_stderr) = (self.fitted.stdout.take(), self.fitted.stderr.take());
        let mut blocks = shown::streams((stdout, shown_stdout), (stderr, shown_stderr));
        blocks.extend(self.outcome.files.iter().flat_map(file));
        let unusual = self.unusual();
        if !unusual.is_empty() {
            let advice = self.advice.take().map_or_else(String::new, |advice| format!("\nhint: {advice}"));
            blocks.push(Block::text(unusual.join("; ") + &advice));
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
        unusual.extend(self.fitted.words(self.whole.as_ref()));
        if outcome.truncated {
            let (stdout, stderr) = (outcome.stdout_bytes, outcome.stderr_bytes);
            unusual.push(format!("output cut: there were {stdout} bytes of stdout and {stderr} of stderr"));
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
