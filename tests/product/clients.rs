//! A real MCP client against the built server.

use std::time::Duration;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, ClientRequest, ErrorCode, ProgressNotificationParam,
};
use rmcp::service::{NotificationContext, PeerRequestOptions, RunningService};
use rmcp::transport::TokioChildProcess;
use rmcp::{ClientHandler, RoleClient, ServiceError, ServiceExt};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::harness::{DEADLINE, command, virtual_machines};

/// A client that keeps the progress it is told of.
struct Listener(UnboundedSender<ProgressNotificationParam>);

impl ClientHandler for Listener {
    async fn on_progress(&self, params: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let _ = self.0.send(params);
    }
}

struct Client {
    service: RunningService<RoleClient, Listener>,
    progress: UnboundedReceiver<ProgressNotificationParam>,
    server_pid: u32,
}

/// Runs `test` with a client and its server, under a deadline.
fn with_client<F: Future<Output = Client>>(test: impl FnOnce(Client) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let all = async {
        let child = TokioChildProcess::new(tokio::process::Command::from(command())).unwrap();
        let server_pid = child.id().unwrap();
        let (sender, progress) = mpsc::unbounded_channel();
        let service = Listener(sender).serve(child).await.unwrap();
        let client = test(Client { service, progress, server_pid }).await;
        client.service.cancel().await.unwrap();
    };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, all).await.expect("the client hangs") });
}

fn execute(arguments: Value) -> CallToolRequestParams {
    CallToolRequestParams::new("execute_code").with_arguments(arguments.as_object().unwrap().clone())
}

async fn call(client: &Client, arguments: Value) -> CallToolResult {
    client.service.call_tool(execute(arguments)).await.unwrap()
}

#[test]
fn the_rust_sdk_lists_and_calls() {
    with_client(|client| async {
        let tools = client.service.list_all_tools().await.unwrap();
        assert_eq!(
            tools.iter().map(|tool| tool.name.as_ref()).collect::<Vec<_>>(),
            [
                "execute_code",
                "open_session",
                "close_session",
                "get_run",
                "send_input",
                "stop_run",
                "write_file",
                "read_file",
                "list_files",
                "install_packages",
                "pool_status"
            ]
        );
        let result = call(&client, json!({"language": "python", "code": "print(6*7)"})).await;
        assert_eq!(result.is_error, Some(false));
        assert_eq!(result.structured_content.unwrap()["stdout"], "42\n");
        client
    });
}

#[test]
fn the_rust_sdk_calls_in_parallel() {
    with_client(|client| async {
        let outputs = (0..8).map(|n| {
            let client = &client;
            async move {
                let result = call(client, json!({"language": "shell", "code": format!("echo {n}")})).await;
                result.structured_content.unwrap()["stdout"].clone()
            }
        });
        let outputs = futures_util::future::join_all(outputs).await;
        assert_eq!(json!(outputs), json!((0..8).map(|n| format!("{n}\n")).collect::<Vec<_>>()));
        client
    });
}

#[test]
fn the_rust_sdk_reads_our_errors() {
    with_client(|client| async {
        let result = call(&client, json!({"language": "python", "code": ""})).await;
        assert_eq!((result.is_error, &result.structured_content), (Some(true), &None));
        let text = &result.content[0].as_text().unwrap().text;
        assert!(text.starts_with("invalid_input: code: is empty"), "{text}");
        assert_eq!(result.meta.unwrap()["sandbox-mcp/error"]["code"], "invalid_input");

        let error = client.service.call_tool(CallToolRequestParams::new("no_such")).await.unwrap_err();
        let ServiceError::McpError(error) = error else { panic!("{error}") };
        assert_eq!((error.code, error.message.as_ref()), (ErrorCode::INVALID_PARAMS, "Unknown tool: no_such"));
        client
    });
}

#[test]
fn the_rust_sdk_receives_progress() {
    with_client(|mut client| async {
        let code = "import time\nfor n in range(4):\n    print(n); time.sleep(0.3)";
        let result = call(&client, json!({"language": "python", "code": code})).await;
        assert_eq!(result.structured_content.unwrap()["stdout"], "0\n1\n2\n3\n");
        let (mut text, mut last) = (String::new(), 0.0);
        // The client hands notifications on beside its results, so the last may come a moment later.
        while let Ok(Some(progress)) = tokio::time::timeout(Duration::from_millis(300), client.progress.recv()).await {
            assert!(progress.progress > last, "progress does not rise");
            last = progress.progress;
            text += &progress.message.unwrap();
        }
        assert!(text.starts_with("0\n1\n") && "0\n1\n2\n3\n".starts_with(&text), "{text:?}");
        client
    });
}

#[test]
fn the_rust_sdk_cancels() {
    with_client(|mut client| async {
        let sleep = json!({"language": "shell", "code": "echo begun; sleep 1000", "timeout_seconds": 300});
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(execute(sleep)));
        let running = client.service.send_cancellable_request(request, PeerRequestOptions::no_options()).await.unwrap();
        let progress = client.progress.recv().await.unwrap();
        assert_eq!(progress.progress_token, running.progress_token);
        assert_eq!(virtual_machines(client.server_pid).len(), 1);
        running.cancel(Some("test".into())).await.unwrap();
        while !virtual_machines(client.server_pid).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The connection goes on.
        let result = call(&client, json!({"language": "shell", "code": "echo next"})).await;
        assert_eq!(result.structured_content.unwrap()["stdout"], "next\n");
        client
    });
}
