//! The method table: what a client can call, by jsonrpsee's dispatch. Reading and writing are not its business.

use std::borrow::Cow;

use jsonrpsee::core::server::{ConnectionId, MethodCallback, Methods};
use jsonrpsee::types::error::{ErrorObjectOwned, INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE, METHOD_NOT_FOUND_CODE};
use jsonrpsee::types::{Id, Params};
use jsonrpsee::{Extensions, RpcModule};
use rmcp::model::{
    CallToolRequestParams, DiscoverResult, InitializeRequestParams, InitializeResult, ListToolsResult, ProgressToken,
};
use sandbox_engine::CancellationToken;
use sandbox_schemas::tools::INSTRUCTIONS;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::context::CallContext;
use crate::mcp::log::Level;
use crate::mcp::protocol::{self, Era};
use crate::mcp::tasks::Reins;
use crate::rpc::message::{Answer, Call, error, to_value};
use crate::settings::Results;
use crate::tools::{self, ToolCall};

/// The method that begins a connection of the legacy era.
pub(crate) const INITIALIZE: &str = "initialize";

/// The method with which a client of the modern era asks who is there.
pub(crate) const DISCOVER: &str = "server/discover";

/// The method with which a client of the legacy era asks to be told of what goes wrong.
const SET_LEVEL: &str = "logging/setLevel";

/// The one method that can take time.
const CALL_TOOL: &str = "tools/call";

type RpcResult = Result<Value, ErrorObjectOwned>;

/// Which eras know a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Always,
    /// With a handshake, or bare.
    InLegacy,
    InModern,
}

/// The table. Each row takes the whole call: its era decides on the shape of the answer.
pub(crate) fn table() -> anyhow::Result<Methods> {
    use Spoken::{Always, InLegacy, InModern};
    let mut module = RpcModule::new(());
    module.register_async_method(INITIALIZE, |params, _, context| answer(params, context, InLegacy, initialize))?;
    module.register_async_method("ping", |params, _, context| answer(params, context, InLegacy, ping))?;
    module.register_async_method(SET_LEVEL, |params, _, context| answer(params, context, InLegacy, set_level))?;
    module.register_async_method(DISCOVER, |params, _, context| answer(params, context, InModern, discover))?;
    module.register_async_method("tools/list", |params, _, context| answer(params, context, Always, list_tools))?;
    module.register_async_method("tasks/get", |params, _, context| answer(params, context, InModern, get_task))?;
    module
        .register_async_method("tasks/update", |params, _, context| answer(params, context, InModern, update_task))?;
    module
        .register_async_method("tasks/cancel", |params, _, context| answer(params, context, InModern, cancel_task))?;
    module.register_async_method(CALL_TOOL, |params, _, context| answer(params, context, Always, call_tool))?;
    Ok(module.into())
}

/// Whether a call is of a tool that runs something, and so of no use to a client that has gone.
pub(crate) fn takes_time(call: &Call) -> bool {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
    }
    let name = || Some(serde_json::from_str::<Named>(call.params.as_ref()?.get()).ok()?.name);
    call.method == CALL_TOOL && name().is_some_and(|name| tools::takes_time(&name))
}

/// Looks the method up and calls it.
pub(crate) async fn dispatch(methods: &Methods, call: Call, context: CallContext) -> Answer {
    // jsonrpsee's ids cannot be negative, so it gets one of ours, and the client's stays outside.
    const INTERNAL_ID: Id<'static> = Id::Number(0);
    let Some(MethodCallback::Async(method)) = methods.method(&call.method) else {
        return Err(unknown_method(&call.method));
    };
    let mut extensions = Extensions::new();
    extensions.insert(context);
    let params = Params::new(call.params.as_deref().map(RawValue::get)).into_owned();
    // The text of a request can be some megabytes, and a tool can take minutes: no copy stays that is not needed.
    drop(call);
    let response = method(INTERNAL_ID, params, ConnectionId(0), usize::MAX, extensions).await;

    #[derive(Deserialize)]
    struct Parts {
        result: Option<Box<RawValue>>,
        error: Option<ErrorObjectOwned>,
    }
    match serde_json::from_str(response.as_json().get()) {
        Ok(Parts { result: Some(result), .. }) => Ok(result),
        Ok(Parts { error: Some(error), .. }) => Err(error),
        _ => Err(error(INTERNAL_ERROR_CODE, "Internal error: a response without a result")),
    }
}

/// An unknown method. It is quoted, but not at any length: the answer waits for the client to read it.
fn unknown_method(name: &str) -> ErrorObjectOwned {
    error(METHOD_NOT_FOUND_CODE, format!("Method not found: {name:.200}"))
}

/// Reads `_meta`, calls the method, gives the result the shape of the request's era.
async fn answer<F>(
    params: Params<'static>,
    extensions: Extensions,
    spoken: Spoken,
    method: impl FnOnce(Request) -> F,
) -> RpcResult
where
    F: Future<Output = RpcResult>,
{
    #[derive(Deserialize)]
    struct WithMeta {
        #[serde(rename = "_meta")]
        meta: Option<Map<String, Value>>,
    }
    let context: &CallContext =
        extensions.get().ok_or_else(|| error(INTERNAL_ERROR_CODE, "Internal error: a call without context"))?;
    let meta = match params.as_str() {
        None => None,
        Some(_) => parse::<WithMeta>(&params)?.meta,
    }
    .unwrap_or_default();
    let era = protocol::era(context.agreed.as_ref(), &meta)?;
    era.check_batch(context.is_in_batch)?;
    match spoken {
        Spoken::InLegacy if era == Era::Modern => {
            return Err(error(METHOD_NOT_FOUND_CODE, "Method not found: this version does not have it"));
        }
        Spoken::InModern if era != Era::Modern => return Err(protocol::not_modern(&meta)),
        _ => {}
    }
    // Until the method has its result: what is told of this request comes before its answer.
    let _listening = era.log_level(&meta)?.map(|level| context.log.listen(level));
    let request = Request { params, meta, era: era.clone(), context: context.clone() };
    Ok(era.shape(method(request).await?))
}

/// A call whose era is known.
struct Request {
    params: Params<'static>,
    meta: Map<String, Value>,
    era: Era,
    context: CallContext,
}

impl Request {
    /// Who reads what comes of it.
    fn results(&self) -> Results {
        self.context.backend.results().unwrap_or_else(|| self.era.results())
    }
}

async fn initialize(request: Request) -> RpcResult {
    let asked: InitializeRequestParams = parse(&request.params)?;
    let version = request.context.connection.negotiate(&asked.protocol_version);
    let result = InitializeResult::new(protocol::capabilities())
        .with_protocol_version(version.clone())
        .with_server_info(protocol::server_info())
        .with_instructions(INSTRUCTIONS);
    // Its own shape is that of what it agrees on, not of what held before.
    Ok(Era::Legacy(version).shape(to_value(result)?))
}

async fn ping(_: Request) -> RpcResult {
    Ok(json!({}))
}

async fn set_level(request: Request) -> RpcResult {
    #[derive(Deserialize)]
    struct SetLevel {
        level: Level,
    }
    let SetLevel { level } = parse(&request.params)?;
    request.context.log.set_level(level);
    Ok(json!({}))
}

async fn discover(_: Request) -> RpcResult {
    let mut result = DiscoverResult::new(protocol::supported_versions(), protocol::modern_capabilities())
        .with_server_info(protocol::server_info());
    result.instructions = Some(INSTRUCTIONS.into());
    to_value(result)
}

async fn list_tools(request: Request) -> RpcResult {
    to_value(ListToolsResult::with_all_items(tools::list(request.results(), &request.context.backend)))
}

async fn call_tool(request: Request) -> RpcResult {
    let knows_tasks = request.era == Era::Modern && protocol::knows_tasks(&request.meta);
    let (name, mut call) = read_tool_call(request)?;
    if !(knows_tasks && tools::takes_time(&name)) {
        return use_tool(name, call).await;
    }
    let (cancel, connection) = (CancellationToken::new(), call.context.connection.clone());
    let asked = std::mem::replace(&mut call.context.cancel, cancel.clone());
    call.hushed = cancel.child_token();
    let reins = Reins { cancel, hushed: call.hushed.clone() };
    let era = call.era.clone();
    connection.tasks.run(&asked, reins, async move { Ok(era.shape(use_tool(name, call).await?)) }).await
}

async fn use_tool(name: Cow<'static, str>, call: ToolCall) -> RpcResult {
    let era = call.era.clone();
    let result = tools::call(&name, call)
        .await
        .ok_or_else(|| error(INVALID_PARAMS_CODE, format!("Unknown tool: {name:.200}")))?;
    to_value(result.or_else(|fault| era.tool_error(fault))?)
}

/// Which task is meant.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TaskParams {
    task_id: String,
}

async fn get_task(request: Request) -> RpcResult {
    let TaskParams { task_id } = parse(&request.params)?;
    request.context.connection.tasks.get(&task_id)
}

async fn update_task(request: Request) -> RpcResult {
    let TaskParams { task_id } = parse(&request.params)?;
    request.context.connection.tasks.update(&task_id)
}

async fn cancel_task(request: Request) -> RpcResult {
    let TaskParams { task_id } = parse(&request.params)?;
    request.context.connection.tasks.cancel(&task_id)
}

/// What a tool needs of a request. A function of its own, so that all else of the request is gone when the tool begins.
fn read_tool_call(request: Request) -> Result<(Cow<'static, str>, ToolCall), ErrorObjectOwned> {
    let params: CallToolRequestParams = parse(&request.params)?;
    let progress_token = progress_token(&request.meta)?;
    let arguments = params.arguments.unwrap_or_default();
    let results = request.results();
    let hushed = request.context.cancel.clone();
    Ok((
        params.name,
        ToolCall { arguments, progress_token, results, era: request.era, hushed, context: request.context },
    ))
}

/// Longest progress token. It is in every notification.
const TOKEN_MAX_BYTES: usize = 1024;

fn progress_token(meta: &Map<String, Value>) -> Result<Option<ProgressToken>, ErrorObjectOwned> {
    // Clients that write out every field of a structure write null for what is not there.
    let token = match meta.get("progressToken") {
        None | Some(Value::Null) => return Ok(None),
        Some(token) => token,
    };
    let is_short = token.as_str().is_none_or(|text| text.len() <= TOKEN_MAX_BYTES);
    serde_json::from_value(token.clone()).ok().filter(|_| is_short).map(Some).ok_or_else(|| {
        let rule = format!("must be an integer or a string of at most {TOKEN_MAX_BYTES} bytes");
        error(INVALID_PARAMS_CODE, format!("Invalid params: _meta.progressToken {rule}"))
    })
}

fn parse<T: for<'de> Deserialize<'de>>(params: &Params<'_>) -> Result<T, ErrorObjectOwned> {
    let text = params.as_str().unwrap_or("{}");
    serde_json::from_str(text).map_err(|fault| error(INVALID_PARAMS_CODE, format!("Invalid params: {fault}")))
}
