// npm `@modelcontextprotocol/client`, which speaks both eras: `client.js legacy|auto|2026-07-28 SERVER`.

import assert from "node:assert/strict";
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { run } from "./scenario.js";

const [mode, command] = process.argv.slice(2);
const isPinned = mode !== "legacy" && mode !== "auto";
const client = new Client({ name: "test", version: "1" }, { versionNegotiation: { mode: isPinned ? { pin: mode } : mode } });
const warnings = [];
client.setNotificationHandler("notifications/message", ({ params }) => { warnings.push(params.data); });
client.onerror = (fault) => { throw fault; };
await client.connect(new StdioClientTransport({ command }));
const version = client.getNegotiatedProtocolVersion();
assert.equal(version, mode === "legacy" ? "2025-11-25" : "2026-07-28");
assert.equal(client.getServerVersion().name, "sandbox-mcp");

const logLevel = { "io.modelcontextprotocol/logLevel": "warning" };
await run({
  client,
  warnings,
  list: async () => (await client.listTools()).tools,
  call: (name, args, options) => client.callTool({ name, arguments: args }, options),
  askForWarnings: () =>
    mode === "legacy" ? client.setLoggingLevel("warning") : client.callTool({ name: "pool_status", _meta: logLevel }),
});
