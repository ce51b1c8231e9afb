//! The server's one loop. Everything that can wake it is in [`Event`].

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::future::join_all;
use jsonrpsee::core::server::Methods;
use jsonrpsee::types::error::INVALID_REQUEST_CODE;
use sandbox_schemas::limits::MESSAGE_MAX_BYTES;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::codec::FramedRead;

use crate::backend::Backend;
use crate::context::CallContext;
use crate::mcp::log::Log;
use crate::mcp::protocol::Connection;
use crate::methods::{DISCOVER, INITIALIZE, dispatch, table, takes_time};
use crate::rpc::arrival::Entrance;
use crate::rpc::calls::{Calls, Kind};
use crate::rpc::framing::{Frame, MessageDecoder};
use crate::rpc::message::{self, Call, Incoming, Parsed, RequestId, RequestKey, error, respond};
use crate::rpc::outbox::{Outbox, outbox};
use crate::settings::Settings;

/// How long the end may take in all, once nobody waits for answers: what is ready is written, and VMs are waited for.
/// Clients that asked with SIGTERM send SIGKILL some seconds later.
const END_DEADLINE: Duration = Duration::from_secs(1);

/// Messages that are being worked on at the same time. More than the calls that can run and wait, so that it is met only
/// when answers are not taken.
const TASKS_MAX: usize = 2048;

/// Serves stdin and stdout until the client is gone.
pub(crate) fn run(runtime: Runtime, settings: Settings, log: Log) -> anyhow::Result<()> {
    let result = runtime.block_on(serve(settings, log));
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
    /// A message was dealt with.
    CallEnded,
    /// Nobody takes our answers any more, or they cannot be written.
    OutputEnded(Written),
    /// We are asked to end.
    Asked(&'static str),
}

/// How the task that writes has ended.
type Written = Result<std::io::Result<()>, JoinError>;

/// Why the server ends.
enum Ending {
    /// No more will come, and all is answered.
    Finished,
    /// There is no one to answer.
    OutputEnded(Written),
    /// A signal came.
    Asked,
}

async fn serve(settings: Settings, log: Log) -> anyhow::Result<()> {
    let (outbox, writer) = outbox();
    log.connect(&outbox);
    let mut writing = tokio::spawn(writer.write_to(tokio::io::stdout()));
    let mut signals = Signals::listen()?;
    let backend = Arc::new(Backend::new(settings));
    tokio::spawn({
        let backend = backend.clone();
        async move { backend.prepare().await }
    });
    let mut server = Server {
        methods: table()?,
        backend: backend.clone(),
        connection: Arc::default(),
        outbox,
        log,
        calls: Calls::default(),
        entrance: Entrance::default(),
        tasks: JoinSet::new(),
        has_handshake: false,
        input_fault: None,
    };
    let ending = server.run(&mut writing, &mut signals).await;
    let input_fault = server.input_fault.take();
    let written = finish(server, ending, writing, &mut signals).await;
    written?;
    input_fault.map_or(Ok(()), |fault| Err(fault).context("reading stdin"))
}

/// Writes what is still to be written and waits for the VMs. A client that reads slowly gets all of its answers, unless
/// a signal asks for an end; then all together has one deadline, and the next signal does not wait for that either.
async fn finish(
    server: Server,
    ending: Ending,
    writing: JoinHandle<std::io::Result<()>>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let is_finished = matches!(ending, Ending::Finished);
    if !is_finished {
        server.calls.cancel_all();
        server.connection.tasks.close();
    }
    let backend = server.backend.clone();
    let mut writes = pin!(async move {
        server.drain().await;
        match ending {
            Ending::OutputEnded(written) => written,
            Ending::Finished | Ending::Asked => writing.await,
        }
    });
    let mut written = None;
    if is_finished {
        tokio::select! {
            how = &mut writes => written = Some(how),
            signal = signals.next() => tracing::info!(signal, "ending"),
        }
    }
    let rest = async {
        let write = async {
            if written.is_none() {
                written = Some(writes.await);
            }
        };
        tokio::join!(write, backend.shut_down());
    };
    tokio::select! {
        _ = tokio::time::timeout(END_DEADLINE, rest) => {}
        signal = signals.next() => tracing::info!(signal, "ending at once"),
    }
    match written {
        Some(written) => written.context("writing answers")?.context("writing answers"),
        // Cut off by the deadline, or by a signal: as asked.
        None => Ok(()),
    }
}

struct Server {
    methods: Methods,
    backend: Arc<Backend>,
    connection: Arc<Connection>,
    outbox: Outbox,
    log: Log,
    calls: Calls,
    entrance: Entrance,
    /// Answers on their way: each is worked on, then waits for room to go out.
    tasks: JoinSet<()>,
    /// Whether a client has introduced itself: then it is gone when its input ends, and its runs with it, while `echo` still
    /// waits.
    has_handshake: bool,
    /// What broke the input, which the process ends with.
    input_fault: Option<std::io::Error>,
}

impl Server {
    /// Until there is nothing left to do, or no one to do it for.
    async fn run(&mut self, writing: &mut JoinHandle<std::io::Result<()>>, signals: &mut Signals) -> Ending {
        let mut input = FramedRead::with_capacity(tokio::io::stdin(), MessageDecoder::default(), 64 * 1024);
        let mut is_reading = true;
        loop {
            if !is_reading && self.tasks.is_empty() {
                return Ending::Finished;
            }
            // A client that sends without reading is not read either, until it has taken some answers.
            let takes_more = is_reading && self.tasks.len() < TASKS_MAX;
            let event = tokio::select! {
                frame = input.next(), if takes_more => match frame {
                    Some(Ok(frame)) => Event::Frame(frame),
                    Some(Err(error)) => Event::InputFailed(error),
                    None => Event::InputEnded,
                },
                Some(_) = self.tasks.join_next() => Event::CallEnded,
                written = &mut *writing => Event::OutputEnded(written),
                name = signals.next() => Event::Asked(name),
            };
            if let Some(framing) = input.decoder().framing() {
                self.outbox.set_framing(framing);
            }
            match event {
                Event::Frame(frame) => self.take_in(frame).await,
                Event::CallEnded => {}
                Event::InputEnded => {
                    is_reading = false;
                    self.backend.expect_no_more();
                    if self.has_handshake {
                        self.calls.cancel_runs();
                    }
                    // Nobody can ask for them any more.
                    self.connection.tasks.close();
                }
                Event::InputFailed(fault) => {
                    self.refuse(None, format!("Invalid Request: {fault}"));
                    self.input_fault = Some(fault);
                    is_reading = false;
                }
                Event::OutputEnded(written) => return Ending::OutputEnded(written),
                Event::Asked(signal) => {
                    tracing::info!(signal, "ending");
                    return Ending::Asked;
                }
            }
        }
    }

    /// Waits until every answer is handed to the writer, which ends when the last sender is gone.
    async fn drain(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    async fn take_in(&mut self, frame: Frame) {
        let bytes = match frame {
            Frame::Message(bytes) => bytes,
            Frame::TooLong { head } => {
                let message = format!("Invalid Request: a message over {MESSAGE_MAX_BYTES} bytes");
                return self.refuse(message::id_in(&head).as_ref(), message);
            }
        };
        match message::parse(&bytes) {
            Parsed::One(incoming) => {
                let response = self.begin(incoming, false).await;
                self.answer_with(response);
            }
            Parsed::Batch(_) if !self.connection.allows_batches() => {
                self.refuse(None, "Invalid Request: this version has no batches".into());
            }
            Parsed::Batch(all) => {
                let mut begun = Vec::with_capacity(all.len());
                for incoming in all {
                    begun.push(self.begin(incoming, true).await);
                }
                self.answer_with(async move {
                    let responses = join_all(begun).await;
                    let responses: Vec<String> = responses.into_iter().flatten().collect();
                    (!responses.is_empty()).then(|| format!("[{}]", responses.join(",")))
                });
            }
        }
    }

    /// Answers what is no message of ours; with its id, where that could be read.
    fn refuse(&mut self, id: Option<&RequestId>, message: String) {
        let response = respond(id, &Err(error(INVALID_REQUEST_CODE, message)));
        self.answer_with(std::future::ready(Some(response)));
    }

    /// Lets the work go on beside the loop; sends what comes of it.
    fn answer_with(&mut self, response: impl Future<Output = Option<String>> + Send + 'static) {
        let outbox = self.outbox.clone();
        self.tasks.spawn(async move {
            if let Some(response) = response.await {
                outbox.send(response).await;
            }
        });
    }

    /// Starts what a message asks for.
    async fn begin(&mut self, incoming: Incoming, is_in_batch: bool) -> Pending {
        match incoming {
            Incoming::Request { id, call } => self.begin_request(id, call, is_in_batch).await,
            Incoming::Notification(call) => {
                self.notice(&call);
                done(None)
            }
            Incoming::Response => done(None),
            Incoming::Malformed { id, error } => done(Some(respond(id.as_ref(), &Err(error)))),
        }
    }

    async fn begin_request(&mut self, id: RequestId, call: Call, is_in_batch: bool) -> Pending {
        let kind = if takes_time(&call) { Kind::Run } else { Kind::Question };
        let Some(live) = self.calls.enter(id.key(), kind) else {
            let answer = Err(error(INVALID_REQUEST_CODE, "Invalid Request: a request with this id is still running"));
            return done(Some(respond(Some(&id), &answer)));
        };
        self.has_handshake |= matches!(call.method.as_str(), INITIALIZE | DISCOVER);
        let context = CallContext {
            backend: self.backend.clone(),
            connection: self.connection.clone(),
            agreed: self.connection.negotiated(),
            outbox: self.outbox.clone(),
            log: self.log.clone(),
            is_in_batch,
            arrival: self.entrance.arrive(),
            cancel: live.cancel.clone(),
        };
        let methods = self.methods.clone();
        let is_handshake = call.method == INITIALIZE;
        // In a task of its own, so that a panic of ours is an answer and not a silence.
        let mut work = tokio::spawn(async move { dispatch(&methods, call, context).await });
        // What a handshake agrees on holds for all that comes behind it, so none of that is looked at before. It takes no
        // time and does not wait for the client.
        let known = if is_handshake { Some((&mut work).await) } else { None };
        Box::pin(async move {
            let ended = match known {
                Some(ended) => ended,
                None => work.await,
            };
            let answer = ended.unwrap_or_else(|fault| Err(message::failed(&fault)));
            // `live` ends here, before the response goes out.
            (!live.cancel.is_cancelled()).then(|| respond(Some(&id), &answer))
        })
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
        if let Some(key) = params.and_then(|params| RequestKey::of(&params.request_id)) {
            self.calls.cancel(&key);
        }
    }
}

/// The response that a message comes to, if there is to be one.
type Pending = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

fn done(response: Option<String>) -> Pending {
    Box::pin(std::future::ready(response))
}

/// What asks a server to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next one's name. Cancel-safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
