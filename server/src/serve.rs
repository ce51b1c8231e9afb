//! The server's one loop. Everything that can wake it is in [`Event`].

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::future::join_all;
use jsonrpsee::core::server::Methods;
use jsonrpsee::types::error::{INTERNAL_ERROR_CODE, INVALID_REQUEST_CODE};
use sandbox_schemas::limits::MESSAGE_MAX_BYTES;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::cli::Cli;
use crate::framing::{Frame, MessageDecoder};
use crate::message::{self, Call, Incoming, Parsed, RequestId, RequestKey, error, respond};
use crate::methods::{CallContext, dispatch, table};
use crate::outbox::{Outbox, outbox};
use crate::protocol::Connection;

/// How long an answer may take to reach a client when the server ends.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// Serves stdin and stdout until the client is gone.
pub(crate) fn run(cli: &Cli) -> anyhow::Result<()> {
    // Calls move between threads with the arguments that started the process; they live as long as it does.
    let cli = Arc::new(cli.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    let result = runtime.block_on(serve(cli));
    // A read of stdin cannot be interrupted; it must not hold the process.
    runtime.shutdown_background();
    result
}

/// All that can wake the server.
enum Event {
    /// A message, or what stands for one.
    Frame(Frame),
    /// No more will come.
    InputEnded,
    /// The framing is broken beyond repair.
    InputFailed(std::io::Error),
    /// A call was answered, or cancelled.
    CallEnded(Vec<RequestKey>),
    /// Nobody takes our answers.
    OutputEnded,
    /// We are asked to end.
    Asked(&'static str),
}

/// Why the server ends, which decides what happens to calls that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Their answers are wanted.
    Finish,
    /// They are not.
    Cancel,
}

async fn serve(cli: Arc<Cli>) -> anyhow::Result<()> {
    let (outbox, writer) = outbox();
    let mut writing = tokio::spawn(writer.write_to(tokio::io::stdout()));
    let backend = Arc::new(Backend::new(cli));
    // Most of what the first call would wait for is done while the client still thinks.
    tokio::spawn({
        let backend = backend.clone();
        async move {
            if let Err(error) = backend.engine().await {
                tracing::warn!(%error, "no program can run yet");
            }
        }
    });
    let mut server = Server {
        methods: table()?,
        backend: backend.clone(),
        connection: Arc::default(),
        outbox,
        calls: HashMap::new(),
        tasks: JoinSet::new(),
        has_handshake: false,
    };
    let ending = server.run(&mut writing).await?;
    server.end(ending).await;
    drop(server);
    let _ = tokio::time::timeout(LAST_WORDS_DEADLINE, writing).await;
    backend.shut_down().await;
    Ok(())
}

struct Server {
    methods: Methods,
    backend: Arc<Backend>,
    connection: Arc<Connection>,
    outbox: Outbox,
    /// What runs, by the client's id.
    calls: HashMap<RequestKey, CancellationToken>,
    /// Each ends with the keys of the calls that it answered.
    tasks: JoinSet<Vec<RequestKey>>,
    /// Whether a client has introduced itself: then it is gone when its input ends, while `echo` still waits.
    has_handshake: bool,
}

impl Server {
    async fn run(&mut self, writing: &mut JoinHandle<std::io::Result<()>>) -> anyhow::Result<Ending> {
        let mut input = FramedRead::with_capacity(tokio::io::stdin(), MessageDecoder::default(), 64 * 1024);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        loop {
            let event = tokio::select! {
                frame = input.next() => match frame {
                    Some(Ok(frame)) => Event::Frame(frame),
                    Some(Err(error)) => Event::InputFailed(error),
                    None => Event::InputEnded,
                },
                Some(ended) = self.tasks.join_next() => Event::CallEnded(ended.unwrap_or_default()),
                _ = &mut *writing => Event::OutputEnded,
                _ = terminate.recv() => Event::Asked("SIGTERM"),
                _ = interrupt.recv() => Event::Asked("SIGINT"),
            };
            if let Some(framing) = input.decoder().framing() {
                self.outbox.set_framing(framing);
            }
            match event {
                Event::Frame(frame) => self.take_in(frame).await,
                Event::CallEnded(keys) => {
                    for key in &keys {
                        self.calls.remove(key);
                    }
                }
                Event::InputEnded => return Ok(if self.has_handshake { Ending::Cancel } else { Ending::Finish }),
                Event::InputFailed(fault) => {
                    let answer = Err(error(INVALID_REQUEST_CODE, format!("Invalid Request: {fault}")));
                    self.outbox.send(respond(None, &answer)).await;
                    return Ok(Ending::Finish);
                }
                Event::OutputEnded => return Ok(Ending::Cancel),
                Event::Asked(signal) => {
                    tracing::info!(signal, "ending");
                    return Ok(Ending::Cancel);
                }
            }
        }
    }

    /// Ends what runs, with its answers or without.
    async fn end(&mut self, ending: Ending) {
        if ending == Ending::Cancel {
            self.calls.values().for_each(CancellationToken::cancel);
        }
        while self.tasks.join_next().await.is_some() {}
    }

    async fn take_in(&mut self, frame: Frame) {
        let bytes = match frame {
            Frame::Message(bytes) => bytes,
            Frame::TooLong => {
                let message = format!("Invalid Request: a message over {MESSAGE_MAX_BYTES} bytes");
                return self.outbox.send(respond(None, &Err(error(INVALID_REQUEST_CODE, message)))).await;
            }
        };
        match message::parse(&bytes) {
            Parsed::One(incoming) => {
                let begun = self.begin(incoming);
                self.answer_with(begun.key.into_iter().collect(), begun.response);
            }
            Parsed::Batch(_) if !self.connection.allows_batches() => {
                let answer = Err(error(INVALID_REQUEST_CODE, "Invalid Request: this version has no batches"));
                self.outbox.send(respond(None, &answer)).await;
            }
            Parsed::Batch(all) => {
                let begun: Vec<Begun> = all.into_iter().map(|incoming| self.begin(incoming)).collect();
                let keys = begun.iter().filter_map(|begun| begun.key.clone()).collect();
                self.answer_with(keys, async move {
                    let responses = join_all(begun.into_iter().map(|begun| begun.response)).await;
                    let responses: Vec<String> = responses.into_iter().flatten().collect();
                    (!responses.is_empty()).then(|| format!("[{}]", responses.join(",")))
                });
            }
        }
    }

    /// Lets the work go on beside the loop; sends what comes of it.
    fn answer_with(&mut self, keys: Vec<RequestKey>, response: impl Future<Output = Option<String>> + Send + 'static) {
        let outbox = self.outbox.clone();
        self.tasks.spawn(async move {
            if let Some(response) = response.await {
                outbox.send(response).await;
            }
            keys
        });
    }

    /// Starts what a message asks for.
    fn begin(&mut self, incoming: Incoming) -> Begun {
        match incoming {
            Incoming::Request { id, call } => self.begin_request(id, call),
            Incoming::Notification(call) => {
                self.notice(&call);
                Begun::done(None)
            }
            Incoming::Response => Begun::done(None),
            Incoming::Malformed { id, error } => Begun::done(Some(respond(id.as_ref(), &Err(error)))),
        }
    }

    fn begin_request(&mut self, id: RequestId, call: Call) -> Begun {
        let key = id.key();
        if self.calls.contains_key(&key) {
            let answer = Err(error(INVALID_REQUEST_CODE, "Invalid Request: a request with this id is still running"));
            return Begun::done(Some(respond(Some(&id), &answer)));
        }
        self.has_handshake |= matches!(call.method.as_str(), "initialize" | "server/discover");
        let cancel = CancellationToken::new();
        self.calls.insert(key.clone(), cancel.clone());
        let context = CallContext {
            backend: self.backend.clone(),
            connection: self.connection.clone(),
            outbox: self.outbox.clone(),
            cancel: cancel.clone(),
        };
        let methods = self.methods.clone();
        let response = async move {
            // In a task of its own, so that a panic of ours is an answer and not a silence.
            let work = tokio::spawn(async move { dispatch(&methods, call, context).await });
            let answer = work.await.unwrap_or_else(|fault| {
                tracing::error!(%fault, "a call failed");
                Err(error(INTERNAL_ERROR_CODE, "Internal error: the call failed; it may have run"))
            });
            (!cancel.is_cancelled()).then(|| respond(Some(&id), &answer))
        };
        Begun { key: Some(key), response: Box::pin(response) }
    }

    /// Notifications are never answered; what is unknown or late is ignored.
    fn notice(&mut self, call: &Call) {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Cancelled {
            request_id: Box<RawValue>,
        }
        if call.method != "notifications/cancelled" {
            return;
        }
        let params = call.params.as_ref().and_then(|params| serde_json::from_str::<Cancelled>(params.get()).ok());
        let token = params.and_then(|params| self.calls.get(&RequestKey::of(&params.request_id)?));
        if let Some(token) = token {
            token.cancel();
        }
    }
}

/// What a message has started: the key of the call, if it is one, and the response, if there is to be one.
struct Begun {
    key: Option<RequestKey>,
    response: Pin<Box<dyn Future<Output = Option<String>> + Send>>,
}

impl Begun {
    fn done(response: Option<String>) -> Begun {
        Begun { key: None, response: Box::pin(std::future::ready(response)) }
    }
}

fn listen(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("listening for signals")
}
