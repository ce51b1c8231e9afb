//! JSON-RPC 2.0 messages, read without trust: what is malformed is answered, with its id where that is readable.

use std::borrow::Cow;
use std::fmt;

use jsonrpsee::types::error::{
    ErrorObject, ErrorObjectOwned, INTERNAL_ERROR_CODE, INVALID_REQUEST_CODE, PARSE_ERROR_CODE,
};
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::task::JoinError;

/// Most messages in one batch. Each is a task and an answer, and a message of a few bytes would otherwise buy thousands.
const BATCH_MAX: usize = 100;

/// Longest id, in bytes of JSON text. It is kept for as long as its request runs.
const ID_MAX_BYTES: usize = 1024;

/// The id of a request, exactly as the client wrote it: JSON text of a string or an integer.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(Box<RawValue>);

/// What an id means, so that `1` and `"1"` differ and `"a"` and `"\u0061"` do not.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RequestKey {
    Number(String),
    Text(String),
}

impl RequestId {
    fn new(raw: &RawValue) -> Option<RequestId> {
        RequestKey::of(raw).map(|_| RequestId(raw.to_owned()))
    }

    pub(crate) fn key(&self) -> RequestKey {
        // An id that was accepted has one.
        RequestKey::of(&self.0).unwrap_or_else(|| RequestKey::Text(self.0.get().to_string()))
    }
}

impl RequestKey {
    /// `None` for what MCP does not allow as an id (null, fractions, booleans, arrays, objects), and for what is too long.
    pub(crate) fn of(raw: &RawValue) -> Option<RequestKey> {
        let text = raw.get();
        if text.len() > ID_MAX_BYTES {
            return None;
        }
        if text.starts_with('"') {
            return serde_json::from_str(text).ok().map(RequestKey::Text);
        }
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_integer.then(|| RequestKey::Number(text.to_string()))
    }
}

/// A message from the client.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Wants an answer.
    Request { id: RequestId, call: Call },
    /// Wants none.
    Notification(Call),
    /// An answer to a request of ours. We send none, so it is ignored.
    Response,
    /// Not JSON, or not JSON-RPC.
    Malformed { id: Option<RequestId>, error: ErrorObjectOwned },
}

/// A method and its parameters.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) params: Option<Box<RawValue>>,
}

/// One message, or a batch of them.
#[derive(Debug)]
pub(crate) enum Parsed {
    One(Incoming),
    Batch(Vec<Incoming>),
}

/// What is in a frame.
pub(crate) fn parse(frame: &[u8]) -> Parsed {
    let malformed = |code, message: String| Parsed::One(Incoming::Malformed { id: None, error: error(code, message) });
    let text = match std::str::from_utf8(frame) {
        Ok(text) => text,
        Err(fault) => {
            return malformed(PARSE_ERROR_CODE, format!("Parse error: not UTF-8 at byte {}", fault.valid_up_to()));
        }
    };
    if text.starts_with('[') {
        return match serde_json::from_str::<Batch>(text) {
            Ok(Batch(messages)) if messages.is_empty() => {
                malformed(INVALID_REQUEST_CODE, "Invalid Request: an empty batch".into())
            }
            Ok(Batch(messages)) => Parsed::Batch(messages.iter().map(|message| parse_one(message.get())).collect()),
            Err(fault) if fault.is_data() => malformed(INVALID_REQUEST_CODE, format!("Invalid Request: {fault}")),
            Err(fault) => malformed(PARSE_ERROR_CODE, format!("Parse error: {fault}")),
        };
    }
    Parsed::One(parse_one(text))
}

/// The messages of a batch, where they lie in the frame. Counted while they are read: what is over the limit is not looked
/// at any more.
struct Batch<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Batch<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Messages;

        impl<'de> Visitor<'de> for Messages {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a batch of at most {BATCH_MAX} messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Batch<'de>, A::Error> {
                let mut messages = Vec::new();
                while let Some(message) = entries.next_element()? {
                    if messages.len() == BATCH_MAX {
                        return Err(de::Error::custom(format_args!("a batch of more than {BATCH_MAX} messages")));
                    }
                    messages.push(message);
                }
                Ok(Batch(messages))
            }
        }
        deserializer.deserialize_seq(Messages)
    }
}

/// An object of JSON-RPC, field by field, where it lies in the frame. Unknown fields are ignored, as JSON-RPC leaves them
/// open.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// Tells `"id": null` from no id at all.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn parse_one(text: &str) -> Incoming {
    let envelope: Envelope = match serde_json::from_str(text) {
        Ok(envelope) => envelope,
        Err(fault) if fault.is_data() => {
            return Incoming::Malformed {
                id: None,
                error: error(INVALID_REQUEST_CODE, format!("Invalid Request: {fault}")),
            };
        }
        Err(fault) => {
            return Incoming::Malformed { id: None, error: error(PARSE_ERROR_CODE, format!("Parse error: {fault}")) };
        }
    };
    let has_id = envelope.id.is_some();
    let id = envelope.id.and_then(RequestId::new);
    let invalid = |id, message: &str| Incoming::Malformed {
        id,
        error: error(INVALID_REQUEST_CODE, format!("Invalid Request: {message}")),
    };
    if envelope.jsonrpc.is_none_or(|version| version.get() != "\"2.0\"") {
        return invalid(id, "`jsonrpc` must be \"2.0\"");
    }
    let Some(method) = envelope.method else {
        let is_response = envelope.result.is_some() || envelope.error.is_some();
        return if is_response { Incoming::Response } else { invalid(id, "`method` is missing") };
    };
    let Ok(method) = serde_json::from_str::<String>(method.get()) else {
        return invalid(id, "`method` must be a string");
    };
    if envelope.params.as_ref().is_some_and(|params| !params.get().starts_with(['{', '['])) {
        return invalid(id, "`params` must be an object");
    }
    let call = Call { method, params: envelope.params.map(ToOwned::to_owned) };
    match id {
        Some(id) => Incoming::Request { id, call },
        None if has_id => {
            invalid(None, &format!("`id` must be a string or an integer of at most {ID_MAX_BYTES} bytes"))
        }
        None => Incoming::Notification(call),
    }
}

/// The id of a message of which only the beginning is there.
pub(crate) fn id_in(head: &[u8]) -> Option<RequestId> {
    /// Reads the fields of an object until it has seen the id.
    struct UntilId<'a>(&'a mut Option<RequestId>);

    impl<'de> Visitor<'de> for UntilId<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
            while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
                if name == "id" {
                    *self.0 = RequestId::new(fields.next_value::<&RawValue>()?);
                    break;
                }
                fields.next_value::<IgnoredAny>()?;
            }
            Ok(())
        }
    }
    // Neither a character that is cut in two nor a number that may go on is an id that is whole.
    let text = head.utf8_chunks().next()?.valid().trim_end_matches(|c: char| c.is_ascii_digit());
    let mut id = None;
    // It always ends with an error: of what is cut off, or of what comes behind the id.
    let _ = serde_json::Deserializer::from_str(text).deserialize_map(UntilId(&mut id));
    id
}

/// Longest text of an error or a warning, in bytes.
const QUOTE_MAX_BYTES: usize = 2000;

/// A result as JSON. That it cannot be made is a bug of ours.
pub(crate) fn to_value(result: impl Serialize) -> Result<Value, ErrorObjectOwned> {
    serde_json::to_value(result).map_err(|fault| error(INTERNAL_ERROR_CODE, format!("Internal error: {fault}")))
}

/// The answer to a call whose task has ended without one: a bug of ours.
pub(crate) fn failed(fault: &JoinError) -> ErrorObjectOwned {
    tracing::error!(%fault, "a call failed");
    error(INTERNAL_ERROR_CODE, "Internal error: the call failed; it may have run")
}

pub(crate) fn error(code: i32, message: impl Into<String>) -> ErrorObjectOwned {
    ErrorObject::owned(code, shortened(message.into()), None::<()>)
}

/// Both quote what is wrong, which a client may have made some megabytes long. The answer waits for it to be read.
pub(crate) fn shortened(mut message: String) -> String {
    if message.len() > QUOTE_MAX_BYTES {
        let end = (0..=QUOTE_MAX_BYTES).rev().find(|&at| message.is_char_boundary(at));
        message.truncate(end.unwrap_or(0));
        message.push('…');
        message.shrink_to_fit();
    }
    message
}

/// A response as it goes out.
#[derive(Serialize)]
pub(crate) struct Response<'a> {
    jsonrpc: &'static str,
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a ErrorObjectOwned>,
}

/// What a method came to.
pub(crate) type Answer = Result<Box<RawValue>, ErrorObjectOwned>;

/// The response's JSON text. An id that could not be read is null, as JSON-RPC wants it.
pub(crate) fn respond(id: Option<&RequestId>, answer: &Answer) -> String {
    let response = Response {
        jsonrpc: "2.0",
        id: id.map(|id| &*id.0),
        result: answer.as_deref().ok(),
        error: answer.as_ref().err(),
    };
    // Text, integers and JSON text: nothing of it can fail to serialize.
    serde_json::to_string(&response).unwrap_or_default()
}

/// A notification's JSON text.
pub(crate) fn notification(method: &str, params: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Notification<'a, P> {
        jsonrpc: &'static str,
        method: &'a str,
        params: &'a P,
    }
    serde_json::to_string(&Notification { jsonrpc: "2.0", method, params }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a frame is answered with, or what it is.
    fn describe(frame: &[u8]) -> String {
        let one = |incoming: Incoming| match incoming {
            Incoming::Request { id, call } => format!("request {} {}", id.0.get(), call.method),
            Incoming::Notification(call) => format!("notification {}", call.method),
            Incoming::Response => "response".into(),
            Incoming::Malformed { id, error } => respond(id.as_ref(), &Err(error)),
        };
        match parse(frame) {
            Parsed::One(incoming) => one(incoming),
            Parsed::Batch(all) => all.into_iter().map(one).collect::<Vec<_>>().join("; "),
        }
    }

    #[track_caller]
    fn check(frame: &str, expected: &str) {
        let found = describe(frame.as_bytes());
        assert!(found.contains(expected), "{found}");
    }

    #[test]
    fn an_id_is_found_in_the_beginning_of_a_message() {
        let check = |head: &[u8], expected: Option<&str>| {
            assert_eq!(id_in(head).map(|id| id.0.get().to_owned()).as_deref(), expected, "{}", head.escape_ascii());
        };
        check(br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"code":"xxx"#, Some("7"));
        check(br#"{"params":{"id":5,"list":[1,{"id":6}]},"id":"a","method":"tools/ca"#, Some("\"a\""));
        check(b"{\"id\":-1,\"code\":\"\xc3", Some("-1"));
        check(br#"{"params":{"id":5,"code":"xxx"#, None);
        check(br#"{"id":null,"method":"a"#, None);
        // Cut within the id: it may have been longer.
        check(br#"{"jsonrpc":"2.0","id":12"#, None);
        check(br#"{"jsonrpc":"2.0","id":"12"#, None);
        check(br#"[{"id":1},{"id":2"#, None);
        check(b"\xff{\"id\":1", None);
        check(b"xxxx", None);
    }

    #[test]
    fn ids_are_strings_or_integers_and_kept_as_written() {
        check(r#"{"jsonrpc":"2.0","id":-7,"method":"a"}"#, "request -7 a");
        check(r#"{"jsonrpc":"2.0","id":99999999999999999999999,"method":"a"}"#, "request 99999999999999999999999 a");
        check(r#"{"jsonrpc":"2.0","id":"\u0061","method":"a"}"#, r#"request "\u0061" a"#);
        for id in ["null", "1.5", "true", "{}", "[1]", "1e3"] {
            check(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"a"}}"#), r#""id":null,"error":{"code":-32600"#);
        }
        check(r#"{"jsonrpc":"2.0","method":"a"}"#, "notification a");
    }

    #[test]
    fn keys_compare_by_meaning() {
        let key = |text: &str| RequestKey::of(&RawValue::from_string(text.into()).unwrap()).unwrap();
        assert_eq!(key(r#""a""#), key(r#""\u0061""#));
        assert_ne!(key("1"), key(r#""1""#));
    }

    #[test]
    fn malformed_frames_are_answered_with_the_id_where_it_is_readable() {
        check("{", r#""id":null,"error":{"code":-32700"#);
        check("nonsense", r#""code":-32700"#);
        check("1", r#""code":-32600"#);
        check(r#"{"id":5,"method":"a"}"#, r#""id":5,"error":{"code":-32600"#);
        check(r#"{"jsonrpc":"2.0","id":5}"#, r#""id":5,"error":{"code":-32600"#);
        check(r#"{"jsonrpc":"2.0","id":5,"method":7}"#, r#""id":5,"error":{"code":-32600"#);
        check(r#"{"jsonrpc":"2.0","id":5,"method":"a","params":7}"#, r#""id":5,"error":{"code":-32600"#);
        check(r#"{"jsonrpc":"2.0","id":5,"result":{}}"#, "response");
        check("[]", r#""code":-32600"#);
        check(r#"[1,{"jsonrpc":"2.0","method":"a"}]"#, "notification a");
        assert!(describe(b"{\"a\":\"\xff\"}").contains("not UTF-8 at byte 6"));
    }

    #[test]
    fn a_batch_is_counted_while_it_is_read() {
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let batch = |count: usize| format!("[{}]", vec![ping; count].join(","));
        assert_eq!(describe(batch(BATCH_MAX).as_bytes()).matches("request 1 ping").count(), BATCH_MAX);
        let refused = describe(batch(BATCH_MAX + 1).as_bytes());
        assert!(refused.contains("-32600") && refused.contains("more than 100 messages"), "{refused}");
        // What comes behind the limit is not read, not even to see that it is no JSON.
        check(&format!("[{}nonsense", "1,".repeat(BATCH_MAX + 1)), r#""id":null,"error":{"code":-32600"#);
    }

    #[test]
    fn an_id_has_a_largest_size() {
        let request = |id: usize| format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"a"}}"#, "x".repeat(id));
        check(&request(ID_MAX_BYTES - 2), "request \"xxx");
        check(&request(ID_MAX_BYTES - 1), r#""id":null,"error":{"code":-32600"#);
    }

    #[test]
    fn depth_cannot_exhaust_the_stack() {
        let deep = "[".repeat(100_000);
        check(&deep, r#""code":-32700"#);
        check(&format!(r#"{{"jsonrpc":"2.0","id":5,"method":"a","params":{deep}"#), r#""code":-32700"#);
    }
}
