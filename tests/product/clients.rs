//! A real MCP client against the built server.

use rmcp::ServiceExt;
use rmcp::model::CallToolRequestParams;
use rmcp::transport::TokioChildProcess;
use serde_json::json;

#[test]
fn the_rust_sdk_lists_and_calls() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sandbox-mcp"));
        command.env("SANDBOX_MCP_ACCEL", "tcg");
        let client = ().serve(TokioChildProcess::new(command).unwrap()).await.unwrap();
        let tools = client.list_all_tools().await.unwrap();
        assert_eq!(tools.iter().map(|tool| tool.name.as_ref()).collect::<Vec<_>>(), ["execute_code"]);

        let arguments = json!({"language": "python", "code": "print(6*7)"}).as_object().unwrap().clone();
        let result =
            client.call_tool(CallToolRequestParams::new("execute_code").with_arguments(arguments)).await.unwrap();
        assert_eq!(result.is_error, Some(false));
        assert_eq!(result.structured_content.unwrap()["stdout"], "42\n");

        let arguments = json!({"language": "python", "code": ""}).as_object().unwrap().clone();
        let result =
            client.call_tool(CallToolRequestParams::new("execute_code").with_arguments(arguments)).await.unwrap();
        assert_eq!(result.is_error, Some(true));
        client.cancel().await.unwrap();
    });
}
