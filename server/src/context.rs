//! What a call can reach besides its parameters.

use std::sync::Arc;

use rmcp::model::ProtocolVersion;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::mcp::log::Log;
use crate::mcp::protocol::Connection;
use crate::rpc::arrival::Arrival;
use crate::rpc::outbox::Outbox;

/// One for each request. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CallContext {
    pub(crate) backend: Arc<Backend>,
    pub(crate) connection: Arc<Connection>,
    /// What the connection had agreed on when the request came: what comes later does not change it.
    pub(crate) agreed: Option<ProtocolVersion>,
    pub(crate) outbox: Outbox,
    pub(crate) log: Log,
    /// Whether the request came in a batch.
    pub(crate) is_in_batch: bool,
    /// Its place among the requests that came in.
    pub(crate) arrival: Arrival,
    /// Cancelled when the client does not want the answer any more.
    pub(crate) cancel: CancellationToken,
}
