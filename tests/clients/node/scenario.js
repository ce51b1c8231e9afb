// What every npm client does with the server. `peer` hides how the two generations of the SDK spell it.
//
// Each step says its name on standard output once it has passed; the test that starts us knows how many there are.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

// For hangs: the machine may be busy with other tests.
const DEADLINE_MS = 120_000;

const SLEEP = { language: "shell", code: "echo begun; sleep 1000", timeout_seconds: 300 };
const COUNT = { language: "python", code: "import time\nfor n in range(4):\n    print(n, 'é', flush=True); time.sleep(0.3)" };

export async function run(peer) {
  const deadline = setTimeout(() => { throw new Error("the client hangs"); }, DEADLINE_MS);
  for (const step of [listing, call, session, stream, cancel, error, parallel, warning]) {
    await step(peer);
    console.log(step.name);
  }
  const ended = performance.now();
  await peer.client.close();
  // The SDKs send SIGTERM after 2 s.
  assert(performance.now() - ended < 2000, "the server does not end with its input");
  console.log("end");
  clearTimeout(deadline);
}

/** The structured result of a run, which the SDK has validated against the tool's output schema. */
async function execute(peer, args, options) {
  const result = await peer.call("execute_code", args, options);
  assert(!result.isError, JSON.stringify(result));
  return result.structuredContent;
}

async function listing(peer) {
  const tools = await peer.list();
  const names = tools.map((tool) => tool.name);
  assert(names.includes("execute_code") && names.includes("pool_status"), names.join());
  for (const tool of tools) {
    assert(tool.title && tool.description && tool.outputSchema, JSON.stringify(tool));
    assert.equal(tool.annotations.destructiveHint, false);
  }
}

async function call(peer) {
  const outcome = await execute(peer, { language: "python", code: "print(6*7)" });
  assert.deepEqual([outcome.stdout, outcome.exit_code], ["42\n", 0]);
  const failed = await execute(peer, { language: "shell", code: "echo oh >&2; exit 3" });
  assert.deepEqual([failed.stderr, failed.exit_code], ["oh\n", 3]);
}

/** A task of several calls, a program beside them, and its end. */
async function session(peer) {
  const use = async (name, args) => {
    const result = await peer.call(name, args);
    assert(!result.isError, JSON.stringify(result));
    return result.structuredContent;
  };
  const { session_id } = await use("open_session", {});
  const run = (language, code, rest) => execute(peer, { session_id, language, code, ...rest });
  assert.equal((await run("javascript", "const x = 6; require('fs').writeFileSync('f', '7'); x")).stdout, "6\n");
  const code = "process.stdin.on('data', (line) => console.log(line * 6))";
  const { run_id } = await run("javascript", code, { background: true });
  assert.equal((await run("shell", "cat f")).stdout, "7");
  await use("send_input", { run_id, text: "7\n", end: true });
  let heard = "";
  let report;
  do {
    report = await use("get_run", { run_id, wait_seconds: 20 });
    heard += report.stdout;
  } while (report.running);
  assert.deepEqual([heard, report.exit_code], ["42\n", 0]);
  assert.equal((await run("javascript", "x * 7")).stdout, "42\n");
  await use("write_file", { session_id, path: "data/ü 1.csv", text: "a,b\n1,2\n" });
  assert.equal((await use("read_file", { session_id, path: "data/ü 1.csv", offset: 4 })).text, "1,2\n");
  assert.deepEqual((await use("list_files", { session_id, path: "data" })).files.map(({ path }) => path), ["ü 1.csv"]);
  const left = await run("shell", "cp in out.bin", { files: [{ path: "in", base64: "/wD+" }], outputs: ["out*"] });
  assert.deepEqual(left.files, [{ path: "out.bin", size_bytes: 3, base64: "/wD+" }]);
  await use("close_session", { session_id });
  const gone = await peer.call("execute_code", { session_id, language: "python", code: "1" });
  assert(gone.isError && gone.content[0].text.startsWith("not_found: "), JSON.stringify(gone));
}

async function stream(peer) {
  const heard = [];
  const outcome = await execute(peer, COUNT, { onprogress: (progress) => heard.push(progress) });
  assert(heard.length >= 2, JSON.stringify(heard));
  heard.reduce((last, { progress }) => (assert(progress > last, "progress does not rise"), progress), 0);
  const text = heard.map(({ message }) => message).join("");
  assert.equal(outcome.stdout, "0 é\n1 é\n2 é\n3 é\n");
  assert(outcome.stdout.startsWith(text), text);
}

async function cancel(peer) {
  const running = async () => (await peer.call("pool_status", {})).structuredContent.vms.running;
  const until = async (count) => { while ((await running()) !== count) await sleep(5); };
  const giveUp = new AbortController();
  let begun;
  const hasBegun = new Promise((resolve) => { begun = resolve; });
  const cancelled = peer.call("execute_code", SLEEP, { signal: giveUp.signal, onprogress: () => begun(), timeout: 200_000 });
  const refused = assert.rejects(cancelled, "a cancelled call was answered");
  await hasBegun;
  await until(1);
  giveUp.abort("the user does not want it any more");
  const since = performance.now();
  await until(0);
  // The server promises 100 ms; what is in between is ours, on a machine that is busy.
  assert(performance.now() - since < 5000, `${performance.now() - since} ms`);
  await refused;
  assert.equal((await execute(peer, { language: "shell", code: "echo next" })).stdout, "next\n");
}

async function error(peer) {
  const result = await peer.call("execute_code", { language: "python", code: "" });
  assert(result.isError && result.content[0].text.startsWith("invalid_input: code: is empty"), JSON.stringify(result));
  const told = result._meta["sandbox-mcp/error"];
  assert.deepEqual([told.code, told.retryable], ["invalid_input", false]);
  await assert.rejects(peer.call("no_such", {}), (fault) => fault.code === -32602 && fault.message.includes("Unknown tool: no_such"));
}

async function parallel(peer) {
  const one = async (n) => (await execute(peer, { language: "shell", code: `printf ${n}%.0s $(seq 1000)` })).stdout;
  const numbers = [0, 1, 2, 3, 4, 5, 6, 7];
  assert.deepEqual(await Promise.all(numbers.map(one)), numbers.map((n) => String(n).repeat(1000)));
}

/** The test sets a variable that is no setting; who asks for warnings is told. */
async function warning(peer) {
  await peer.askForWarnings();
  while (!peer.warnings.some((data) => data.includes("SANDBOX_MCP_NO_SUCH"))) await sleep(10);
}
