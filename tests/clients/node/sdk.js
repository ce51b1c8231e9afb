// npm `@modelcontextprotocol/sdk`, which speaks the legacy era: `sdk.js SERVER`.

import assert from "node:assert/strict";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { LoggingMessageNotificationSchema } from "@modelcontextprotocol/sdk/types.js";
import { run } from "./scenario.js";

const client = new Client({ name: "test", version: "1" });
const warnings = [];
client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => { warnings.push(params.data); });
client.onerror = (fault) => { throw fault; };
await client.connect(new StdioClientTransport({ command: process.argv[2] }));
assert.equal(client.getServerVersion().name, "sandbox-mcp");

await run({
  client,
  warnings,
  list: async () => (await client.listTools()).tools,
  call: (name, args, options) => client.callTool({ name, arguments: args }, undefined, options),
  askForWarnings: () => client.setLoggingLevel("warning"),
});
