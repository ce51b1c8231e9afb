"""PyPI `mcp` 1: `v1.py SERVER`."""

import sys
import time

import anyio
import scenario
from mcp import ClientSession, McpError, StdioServerParameters, stdio_client
from mcp.types import CancelledNotification, CancelledNotificationParams, ClientNotification


class Peer:
    def __init__(self, session, warnings):
        self.session, self.warnings = session, warnings

    async def list(self):
        return [tool.model_dump(by_alias=True) for tool in (await self.session.list_tools()).tools]

    async def call(self, name, arguments, progress=None):
        result = await self.session.call_tool(name, arguments, progress_callback=progress)
        return result.model_dump(by_alias=True)

    async def call_in(self, scope, name, arguments, progress):
        # This generation tells nobody when it gives up: the notification has to be sent by hand.
        self.running = self.session._request_id
        with scope:
            await self.call(name, arguments, progress)
            raise AssertionError("a cancelled call was answered")

    async def cancel(self, scope):
        params = CancelledNotificationParams(requestId=self.running, reason="test")
        notification = CancelledNotification(method="notifications/cancelled", params=params)
        await self.session.send_notification(ClientNotification(notification))

    async def error_of(self, name, arguments):
        try:
            await self.call(name, arguments)
        except McpError as fault:
            return fault.error.code, fault.error.message

    async def ask_for_warnings(self):
        await self.session.set_logging_level("warning")


async def main(server):
    warnings = []

    async def log(params):
        warnings.append(params.data)

    async with stdio_client(StdioServerParameters(command=server)) as streams:
        async with ClientSession(*streams, logging_callback=log) as session:
            greeting = await session.initialize()
            assert (greeting.protocolVersion, greeting.serverInfo.name) == ("2025-11-25", "sandbox-mcp"), greeting
            await scenario.run(Peer(session, warnings))
        ended = time.monotonic()
    # The SDK sends SIGTERM after 2 s.
    assert time.monotonic() - ended < 2, "the server does not end with its input"
    print("end", flush=True)


anyio.run(main, *sys.argv[1:])
