"""PyPI `mcp` 2: `v2.py legacy|auto|2026-07-28 SERVER`."""

import sys
import time

import anyio
import scenario
from mcp import Client, MCPError, StdioServerParameters


class Peer:
    def __init__(self, client, warnings):
        self.client, self.warnings = client, warnings

    async def list(self):
        return [tool.model_dump(by_alias=True) for tool in (await self.client.list_tools()).tools]

    async def call(self, name, arguments, progress=None):
        result = await self.client.call_tool(name, arguments, progress_callback=progress)
        return result.model_dump(by_alias=True)

    async def call_in(self, scope, name, arguments, progress):
        with scope:
            await self.call(name, arguments, progress)
            raise AssertionError("a cancelled call was answered")

    async def cancel(self, scope):
        # Whoever gives up on a request has the SDK tell the server.
        scope.cancel()

    async def error_of(self, name, arguments):
        try:
            await self.call(name, arguments)
        except MCPError as fault:
            return fault.error.code, fault.error.message

    async def ask_for_warnings(self):
        if self.client.protocol_version < "2026":
            await self.client.set_logging_level("warning")
        else:
            # Any request that names a level is told.
            meta = {"io.modelcontextprotocol/logLevel": "warning"}
            await self.client.call_tool("pool_status", {}, meta=meta)


async def main(mode, server):
    warnings = []

    async def log(params):
        warnings.append(params.data)

    async with Client(StdioServerParameters(command=server), mode=mode, logging_callback=log) as client:
        expected = "2025-11-25" if mode == "legacy" else "2026-07-28"
        assert client.protocol_version == expected, client.protocol_version
        if mode != "2026-07-28":
            # Who goes without asking who is there is not told.
            assert client.server_info.name == "sandbox-mcp" and client.instructions, client.server_info
        await scenario.run(Peer(client, warnings))
        ended = time.monotonic()
    # The SDK sends SIGTERM after 2 s.
    assert time.monotonic() - ended < 2, "the server does not end with its input"
    print("end", flush=True)


anyio.run(main, *sys.argv[1:])
