//! JSON-RPC 2.0 on two streams: messages in, messages out, and the calls between them. Knows no MCP.

// In the order in which to read them.
pub(crate) mod framing;
pub(crate) mod message;

pub(crate) mod arrival;
pub(crate) mod calls;

pub(crate) mod delivery;
pub(crate) mod outbox;
