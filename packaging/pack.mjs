// Makes what desktop clients and the MCP registry install from: a bundle, and the entry that points to it.
//
//     pack.mjs MCPB PROGRAM FOLDER URL
//
// MCPB is npm's `@anthropic-ai/mcpb`, FOLDER takes `sandbox-mcp.mcpb` and `server.json`, URL is where the bundle will be
// found. Version and tools are what the program says of itself, so that the files beside us have neither to keep right.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [mcpb, program, folder, url] = process.argv.slice(2);
const read = (name) => JSON.parse(readFileSync(join(import.meta.dirname, name), "utf8"));
const write = (path, value) => writeFileSync(path, JSON.stringify(value, null, 2) + "\n");

const version = execFileSync(program, ["--version"], { encoding: "utf8" }).trim().split(" ").at(-1);
const { tools } = JSON.parse(execFileSync(program, ["schema"], { encoding: "utf8" }));

const staged = join(folder, "staged");
rmSync(staged, { recursive: true, force: true });
mkdirSync(join(staged, "server"), { recursive: true });
copyFileSync(program, join(staged, "server/sandbox-mcp"));
chmodSync(join(staged, "server/sandbox-mcp"), 0o755);
const manifest = read("manifest.json");
manifest.version = version;
manifest.tools = tools.map(({ name, title }) => ({ name, description: title }));
write(join(staged, "manifest.json"), manifest);

const bundle = join(folder, "sandbox-mcp.mcpb");
execFileSync(process.execPath, [mcpb, "validate", join(staged, "manifest.json")], { stdio: "inherit" });
execFileSync(process.execPath, [mcpb, "pack", staged, bundle], { stdio: "inherit" });
rmSync(staged, { recursive: true });

const fileSha256 = createHash("sha256").update(readFileSync(bundle)).digest("hex");
const packages = [{ registryType: "mcpb", identifier: url, fileSha256, transport: { type: "stdio" } }];
write(join(folder, "server.json"), { ...read("server.json"), version, packages });
