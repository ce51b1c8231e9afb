//! `write_file`, `read_file` and `list_files`: the files of a session.

use std::io::Cursor;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rmcp::model::CallToolResult;
use sandbox_engine::{Engine, FileSource};
use sandbox_schemas::files::{
    Contents, FileInput, ListInput, ListOutcome, ListedFile, ReadInput, ReadOutcome, WriteInput, WriteOutcome,
};
use schemars::schema_for;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::context::CallContext;
use crate::mcp::tool_error::ToolError;
use crate::share;
use crate::steady::Steady;
use crate::tools::shown::{self, Block, Shown};
use crate::tools::{ToolCall, engine_for, hold, invalid};

/// A disk that takes longer for a name is one that may take for ever: a network's.
const HOST_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) async fn write(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: WriteInput = call.input(|| schema_for!(WriteInput))?;
    let (session_id, file) = input.into_parts();
    file.validate().map_err(|error| invalid(error.to_string()))?;
    let context = &call.context;
    let _held = hold(context, file.inline_bytes())?;
    let engine = engine_for(context).await?;
    let source = source(context, file).await.map_err(invalid)?;
    let writing = engine.write_file(&session_id, source, context.cancel.clone());
    let written = context.arrival.begin(writing).await?;
    Ok(shown::result(call.results, written))
}

pub(crate) async fn read(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: ReadInput = call.input(|| schema_for!(ReadInput))?;
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let engine = engine_for(&call.context).await?;
    let read = match &input.host_path {
        Some(host_path) => put_on_host(&call.context, &engine, &input, host_path.clone()).await?,
        None => call.context.arrival.begin(engine.read_file(&input, call.context.cancel.clone())).await?,
    };
    Ok(shown::result(call.results, read))
}

pub(crate) async fn list(mut call: ToolCall) -> Result<CallToolResult, ToolError> {
    let input: ListInput = call.input(|| schema_for!(ListInput))?;
    input.validate().map_err(|error| invalid(error.to_string()))?;
    let engine = engine_for(&call.context).await?;
    let listing = engine.list_files(&input, call.context.cancel.clone());
    let listed = call.context.arrival.begin(listing).await?;
    Ok(shown::result(call.results, listed))
}

/// Where what a file shall hold comes from. What is wrong with that is an error for a model to read.
pub(super) async fn source(context: &CallContext, file: FileInput) -> Result<FileSource, String> {
    let FileInput { path, text, base64, host_path, executable } = file;
    let contents: Box<dyn tokio::io::AsyncRead + Send + Sync + Unpin> = match (base64, host_path) {
        (Some(base64), _) => {
            // As `base64` writes it, in lines.
            let digits: String = base64.split_whitespace().collect();
            let bytes = BASE64_STANDARD.decode(digits);
            Box::new(Cursor::new(bytes.map_err(|error| format!("base64: {error}"))?))
        }
        (None, Some(host_path)) => {
            let shares = context.backend.shares();
            let open =
                move || Steady::new(share::open(&shares, &host_path)?).map_err(|error| format!("host_path: {error}"));
            Box::new(on_host(context, open).await?)
        }
        (None, None) => Box::new(Cursor::new(text.unwrap_or_default())),
    };
    Ok(FileSource { path, executable, contents })
}

async fn put_on_host(
    context: &CallContext,
    engine: &Engine,
    input: &ReadInput,
    host_path: String,
) -> Result<ReadOutcome, ToolError> {
    let shares = context.backend.shares();
    let incoming = on_host(context, move || share::create(&shares, &host_path)).await.map_err(invalid)?;
    let mut file = File::from_std(incoming.file().map_err(invalid)?);
    let fetching = engine.fetch_file(input, &mut file, context.cancel.clone());
    let read = context.arrival.begin(fetching).await?;
    let fault = |error: std::io::Error| invalid(format!("host_path: {error}"));
    file.flush().await.map_err(fault)?;
    on_host(context, move || incoming.finish()).await.map_err(invalid)?;
    Ok(read)
}

/// What the host's disk may take time for. Other calls wait no longer for one that it takes long.
async fn on_host<T: Send + 'static>(
    context: &CallContext,
    work: impl FnOnce() -> Result<T, share::Refusal> + Send + 'static,
) -> Result<T, share::Refusal> {
    let mut work = tokio::task::spawn_blocking(work);
    let done = match tokio::time::timeout(HOST_PATIENCE, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            context.arrival.let_pass();
            work.await
        }
    };
    done.unwrap_or_else(|error| Err(error.to_string()))
}

/// What is in a file as a block, or what can be said of it.
fn block(contents: &mut Contents, size_bytes: u64) -> Block {
    match (contents.text.take(), contents.base64.take(), &contents.mime_type) {
        (Some(text), ..) if text.is_empty() => {
            contents.text = Some(text);
            Block::text("(empty)".into())
        }
        (Some(text), ..) => Block::of("text", text),
        (None, Some(base64), Some(mime_type)) => Block::picture(base64, mime_type).of_field("base64"),
        // No model reads it; whoever does finds it beside the text.
        (None, Some(base64), None) => {
            let read = base64.len() / 4 * 3;
            contents.base64 = Some(base64);
            Block::text(format!("some {read} bytes that are no text, of {size_bytes}"))
        }
        (None, None, _) => Block::text(format!("{size_bytes} bytes")),
    }
}

impl Shown for WriteOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        vec![Block::text(format!("{} bytes", self.size_bytes))]
    }
}

impl Shown for ReadOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        let (next, size_bytes) = (self.next, self.size_bytes);
        let rest = (next < size_bytes)
            .then(|| Block::text(format!("to byte {next} of {size_bytes}; offset: {next} reads on")));
        [Some(block(&mut self.contents, size_bytes)), rest].into_iter().flatten().collect()
    }
}

impl Shown for ListOutcome {
    fn blocks(&mut self) -> Vec<Block> {
        let line = |file: &ListedFile| match file.kind.as_str() {
            "file" => format!("{} {}", file.size_bytes, file.path),
            "folder" => format!("{}/", file.path),
            kind => format!("({kind}) {}", file.path),
        };
        let mut lines: Vec<_> = self.files.iter().map(line).collect();
        match (self.truncated, lines.is_empty()) {
            (true, _) => lines.push("and more".into()),
            (false, true) => lines.push("(empty)".into()),
            _ => {}
        }
        vec![Block::text(lines.join("\n"))]
    }
}
