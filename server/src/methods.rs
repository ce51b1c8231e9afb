//! The method table: what a client can call, by jsonrpsee's dispatch. Reading and writing are not its business.

use std::sync::Arc;

use jsonrpsee::core::server::{ConnectionId, MethodCallback, Methods};
use jsonrpsee::types::error::{ErrorObjectOwned, INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE, METHOD_NOT_FOUND_CODE};
use jsonrpsee::types::{Id, Params};
use jsonrpsee::{Extensions, RpcModule};
use rmcp::model::{
    CallToolRequestParams, DiscoverResult, InitializeRequestParams, InitializeResult, ListToolsResult, ProgressToken,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::message::{Answer, Call, error};
use crate::outbox::Outbox;
use crate::protocol::{self, Connection};
use crate::tools;

/// What a method can reach besides its parameters.
#[derive(Clone)]
pub(crate) struct CallContext {
    pub(crate) backend: Arc<Backend>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) outbox: Outbox,
    /// Cancelled when the client does not want the answer any more.
    pub(crate) cancel: CancellationToken,
}

type RpcResult = Result<Value, ErrorObjectOwned>;

/// The table. Each row takes the whole call: its era decides on the shape of the answer.
pub(crate) fn table() -> anyhow::Result<Methods> {
    let mut module = RpcModule::new(());
    module.register_async_method("initialize", |params, _, context| answer(params, context, initialize))?;
    module.register_async_method("ping", |params, _, context| answer(params, context, ping))?;
    module.register_async_method("server/discover", |params, _, context| answer(params, context, discover))?;
    module.register_async_method("tools/list", |params, _, context| answer(params, context, list_tools))?;
    module.register_async_method("tools/call", |params, _, context| answer(params, context, call_tool))?;
    Ok(module.into())
}

/// Looks the method up and calls it.
pub(crate) async fn dispatch(methods: &Methods, call: Call, context: CallContext) -> Answer {
    // jsonrpsee's ids cannot be negative, so it gets one of ours, and the client's stays outside.
    const INTERNAL_ID: Id<'static> = Id::Number(0);
    let Some(MethodCallback::Async(method)) = methods.method(&call.method) else {
        return Err(error(METHOD_NOT_FOUND_CODE, format!("Method not found: {}", call.method)));
    };
    let mut extensions = Extensions::new();
    extensions.insert(context);
    let params = Params::new(call.params.as_ref().map(|params| params.get())).into_owned();
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

/// Reads `_meta`, calls the method, gives the result the shape of the request's era.
async fn answer<F>(params: Params<'static>, extensions: Extensions, method: impl FnOnce(Request) -> F) -> RpcResult
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
    };
    let era = context.connection.era(meta.as_ref())?;
    let request = Request { params, meta: meta.unwrap_or_default(), context: context.clone() };
    Ok(era.shape(method(request).await?))
}

/// A call whose era is known.
struct Request {
    params: Params<'static>,
    meta: Map<String, Value>,
    context: CallContext,
}

async fn initialize(request: Request) -> RpcResult {
    let asked: InitializeRequestParams = parse(&request.params)?;
    let version = request.context.connection.negotiate(&asked.protocol_version);
    to_value(
        InitializeResult::new(protocol::capabilities())
            .with_protocol_version(version)
            .with_server_info(protocol::server_info())
            .with_instructions(protocol::INSTRUCTIONS),
    )
}

async fn ping(_: Request) -> RpcResult {
    Ok(json!({}))
}

async fn discover(_: Request) -> RpcResult {
    let mut result = DiscoverResult::new(protocol::supported_versions(), protocol::capabilities())
        .with_server_info(protocol::server_info());
    result.instructions = Some(protocol::INSTRUCTIONS.into());
    to_value(result)
}

async fn list_tools(_: Request) -> RpcResult {
    to_value(ListToolsResult::with_all_items(tools::list()))
}

async fn call_tool(request: Request) -> RpcResult {
    let params: CallToolRequestParams = parse(&request.params)?;
    let progress_token = progress_token(&request.meta)?;
    let arguments = params.arguments.unwrap_or_default();
    let call = tools::ToolCall { arguments, progress_token, context: request.context };
    let result = tools::call(&params.name, call)
        .await
        .ok_or_else(|| error(INVALID_PARAMS_CODE, format!("Unknown tool: {}", params.name)))?;
    to_value(result)
}

fn progress_token(meta: &Map<String, Value>) -> Result<Option<ProgressToken>, ErrorObjectOwned> {
    let Some(token) = meta.get("progressToken") else { return Ok(None) };
    serde_json::from_value(token.clone())
        .map(Some)
        .map_err(|_| error(INVALID_PARAMS_CODE, "Invalid params: _meta.progressToken must be a string or an integer"))
}

fn parse<T: for<'de> Deserialize<'de>>(params: &Params<'_>) -> Result<T, ErrorObjectOwned> {
    let text = params.as_str().unwrap_or("{}");
    serde_json::from_str(text).map_err(|fault| error(INVALID_PARAMS_CODE, format!("Invalid params: {fault}")))
}

fn to_value(result: impl Serialize) -> RpcResult {
    serde_json::to_value(result).map_err(|fault| error(INTERNAL_ERROR_CODE, format!("Internal error: {fault}")))
}
