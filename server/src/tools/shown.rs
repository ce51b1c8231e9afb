//! What is shown of a result, to whoever reads it.
//!
//! Clients differ in what they give to their model: some `structuredContent` alone where there is any, and no text; some both, so that
//! it is paid for twice; some the text. So a result for a model is text and nothing beside it that a model could be given.

use rmcp::model::{CallToolResult, ContentBlock, MetaObject};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::settings::Results;

/// Where a program that reads along finds all that a model is not shown.
const OUTCOME_KEY: &str = "sandbox-mcp/outcome";

/// Where in that is said which block of the content has the text of a field.
const BLOCKS_KEY: &str = "blocks";

/// A block of text, or a picture.
pub(crate) struct Block {
    /// The field whose text it has, behind a line of its own that says so where it is not the first thing that a reader expects.
    pub(crate) field: Option<&'static str>,
    /// Whether that is all that the field has: else it stays where it was.
    is_whole: bool,
    /// Of a picture, base64.
    pub(crate) text: String,
    /// Of a picture, what kind it is.
    mime_type: Option<String>,
}

impl Block {
    /// Words of ours.
    pub(crate) fn text(text: String) -> Block {
        Block { field: None, is_whole: true, text, mime_type: None }
    }

    /// The text of a field.
    pub(crate) fn of(field: &'static str, text: String) -> Block {
        Block { field: Some(field), is_whole: true, text, mime_type: None }
    }

    /// A picture.
    pub(crate) fn picture(base64: String, mime_type: &str) -> Block {
        Block { field: None, is_whole: true, text: base64, mime_type: Some(mime_type.to_owned()) }
    }

    /// The same block, as that of a field.
    pub(crate) fn of_field(self, field: &'static str) -> Block {
        Block { field: Some(field), ..self }
    }

    fn into_content(self) -> ContentBlock {
        match self.mime_type {
            Some(mime_type) => ContentBlock::image(self.text, mime_type),
            None => ContentBlock::text(self.text),
        }
    }
}

/// A result that can be shown.
pub(crate) trait Shown: Serialize {
    /// What a person would want to see. The text of a block that has a whole field is taken out of the result.
    fn blocks(&mut self) -> Vec<Block>;
}

/// What a program has written, and what is shown of it if that is something else.
pub(crate) fn streams(stdout: (&mut String, Option<String>), stderr: (&mut String, Option<String>)) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (field, heading, (written, shown)) in [("stdout", "", stdout), ("stderr", "stderr:\n", stderr)] {
        let is_whole = shown.is_none();
        let text = shown.unwrap_or_else(|| std::mem::take(written));
        if !text.is_empty() {
            blocks.push(Block { is_whole, ..Block::of(field, format!("{heading}{text}")) });
        }
    }
    blocks
}

/// The result for who reads it.
pub(crate) fn result(results: Results, mut shown: impl Shown) -> CallToolResult {
    if results == Results::Data {
        return CallToolResult::structured(to_value(&shown));
    }
    let blocks = shown.blocks();
    let mut outcome = to_value(&shown);
    if let Some(fields) = outcome.as_object_mut() {
        let mut places = Map::new();
        for (place, block) in blocks.iter().enumerate() {
            let Some(field) = block.field else { continue };
            places.insert(field.to_owned(), place.into());
            if block.is_whole {
                fields.remove(field);
            }
        }
        fields.insert(BLOCKS_KEY.into(), places.into());
    }
    let mut meta = MetaObject::new();
    meta.insert(OUTCOME_KEY.into(), outcome);
    CallToolResult::success(blocks.into_iter().map(Block::into_content).collect()).with_meta(Some(meta))
}

fn to_value(shown: &impl Serialize) -> Value {
    // Numbers, text and flags: nothing of it can fail to serialize.
    serde_json::to_value(shown).unwrap_or_default()
}
