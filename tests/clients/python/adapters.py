"""The tools as adapters show them to models, and what models send through those: `adapters.py SERVER`.

No model is asked: one is played, which makes every call of CALLS. Each adapter has a server of its own, and says its name
on standard output once it has passed; the test that starts us knows which there are.
"""

import copy
import json
import sys
from contextlib import asynccontextmanager

import anyio
import httpx2
from agents import Agent, RunContextWrapper
from agents.mcp import MCPServerStdio
from agents.strict_schema import ensure_strict_json_schema
from agents.tool_context import ToolContext
from fastmcp.client.transports import StdioTransport
from google import genai
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_mcp_adapters.tools import load_mcp_tools
from mcp import ClientSession, StdioServerParameters, stdio_client
from mcpadapt.core import MCPAdapt
from mcpadapt.smolagents_adapter import SmolAgentsAdapter
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer
from smolagents.models import get_tool_json_schema
from smolagents.tools import validate_tool_arguments

TOOL = "execute_code"
PROGRAM = {"language": "python", "code": "print(6*7)"}
# Of a model that may leave out nothing, and to which no schema says that it may send null.
EMPTY = {
    "background": False,
    "env": [],
    "environment_id": "",
    "files": [],
    "memory_mb": 512,
    "outputs": [],
    "packages": [],
    "session_id": "",
    "stdin": "",
    "timeout_seconds": 120,
}
NULLS = dict.fromkeys(EMPTY)
FILES = [{"path": "f", "text": "", "base64": "eA==", "executable": None}, {"path": "g", "text": "x", "base64": ""}]
CALLS = [PROGRAM | optional for optional in ({}, NULLS, NULLS | {"environment_id": ""}, EMPTY, EMPTY | {"files": FILES})]

# The keywords that OpenAI's strict mode reads and no conversion here drops or stumbles over.
STRICT = {"type", "description", "enum", "properties", "required", "additionalProperties", "items", "minimum", "maximum"}

# For hangs: the machine may be busy with other tests. Given to adapters that wait for 5 s if not told otherwise.
DEADLINE_SECONDS = 240


async def main(server):
    with anyio.fail_after(DEADLINE_SECONDS):
        async with connection(server) as session:
            published = [(tool.name, tool.description, tool.inputSchema) for tool in (await session.list_tools()).tools]
        properties = {name: schema["properties"] for name, _, schema in published}
        assert properties[TOOL].keys() == PROGRAM.keys() | EMPTY.keys(), "not all arguments are sent"
        for _, _, schema in published:
            check_strict(ensure_strict_json_schema(copy.deepcopy(schema)))
        for adapter in (openai_agents, google_genai, mcpadapt, langchain, pydantic_ai):
            converted, results = await adapter(server)
            check_kept(published, converted)
            assert [(result["stdout"], result["exit_code"]) for result in results] == [("42\n", 0)] * len(CALLS), results
            print(adapter.__name__, flush=True)


def check_kept(published, converted):
    """Every tool, with every word about it and its arguments."""
    assert [tool[:2] for tool in converted] == [tool[:2] for tool in published], converted
    for (name, _, before), (_, _, after) in zip(published, converted):
        assert words(after["properties"]) == words(before["properties"]), (name, after)
        assert set(before.get("required", [])) <= set(after.get("required", [])), (name, after)


def words(properties):
    """What is told of arguments. Google writes types in capital letters, and strict conversion demands all of what is in a list."""

    def told(schema):
        kept = {name: value for name, value in schema.items() if name not in ("additionalProperties", "required")}
        if "items" in kept:
            kept["items"] = told(kept["items"])
        if "properties" in kept:
            kept["properties"] = {name: told(inner) for name, inner in kept["properties"].items()}
        return kept

    return json.loads(json.dumps({name: told(schema) for name, schema in properties.items()}).lower())


def check_strict(schema):
    """As OpenAI demands of a function that says `strict`: no object has arguments that are optional, or not named."""
    assert schema.keys() <= STRICT and isinstance(schema["type"], str), schema
    properties = schema.get("properties", {})
    if schema["type"] == "object":
        assert schema["additionalProperties"] is False, schema
        assert set(schema.get("required", [])) == properties.keys(), schema
    if schema["type"] == "array":
        check_strict(schema["items"])
    for argument in properties.values():
        check_strict(argument)


@asynccontextmanager
async def connection(server):
    async with stdio_client(StdioServerParameters(command=server)) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


# Each returns name, description and JSON schema of every tool as the model is told them, and the results of CALLS.


async def openai_agents(server):
    async with MCPServerStdio({"command": server}, client_session_timeout_seconds=DEADLINE_SECONDS) as peer:
        agent = Agent(name="test", mcp_servers=[peer], mcp_config={"convert_schemas_to_strict": True})
        tools = {tool.name: tool for tool in await agent.get_mcp_tools(RunContextWrapper(None))}
        for tool in tools.values():
            # A tool without arguments stays as it is unless its schema says `additionalProperties: false`, at which
            # Google's conversion fails.
            assert tool.strict_json_schema or not tool.params_json_schema["properties"], tool
            if tool.strict_json_schema:
                check_strict(tool.params_json_schema)
        results = []
        for call in CALLS:
            arguments = json.dumps(call)
            context = ToolContext(context=None, tool_name=TOOL, tool_call_id="1", tool_arguments=arguments)
            results.append(json.loads((await tools[TOOL].on_invoke_tool(context, arguments))["text"]))
    return [(tool.name, tool.description, tool.params_json_schema) for tool in tools.values()], results


async def google_genai(server):
    requests = []

    def model(request):
        requests.append(json.loads(request.content))
        calls = [{"functionCall": {"name": TOOL, "args": call}} for call in CALLS]
        content = {"role": "model", "parts": calls if len(requests) == 1 else [{"text": "done"}]}
        return httpx2.Response(200, json={"candidates": [{"content": content}]})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(model))
    client = genai.Client(api_key="none", http_options={"httpx_async_client": http})
    async with connection(server) as session:
        # Not as a `GenerateContentConfig`, of which a deep copy is made: sessions cannot be copied.
        await client.aio.models.generate_content(model="none", contents="?", config={"tools": [session]})
    tools = [tool for group in requests[0]["tools"] for tool in group["functionDeclarations"]]
    answers = [part["functionResponse"]["response"]["result"] for part in requests[1]["contents"][-1]["parts"]]
    results = [json.loads(answer["content"][0]["text"]) for answer in answers]
    return [(tool["name"], tool["description"], tool["parameters"]) for tool in tools], results


async def mcpadapt(server):
    return await anyio.to_thread.run_sync(smolagents, server)


def smolagents(server):
    parameters = StdioServerParameters(command=server)
    with MCPAdapt(parameters, SmolAgentsAdapter(), client_session_timeout_seconds=float(DEADLINE_SECONDS)) as tools:
        converted = [get_tool_json_schema(tool)["function"] for tool in tools]
        tool = next(tool for tool in tools if tool.name == TOOL)
        # Its agents that call tools do so before each call; those that write programs do not.
        validate_tool_arguments(tool, PROGRAM | EMPTY)
        results = [json.loads(tool(**call)) for call in CALLS]
    return [(tool["name"], tool["description"], tool["parameters"]) for tool in converted], results


async def langchain(server):
    async with connection(server) as session:
        tools = await load_mcp_tools(session)
        tool = next(tool for tool in tools if tool.name == TOOL)
        messages = [await tool.ainvoke({"type": "tool_call", "id": "1", "name": TOOL, "args": call}) for call in CALLS]
    converted = [convert_to_openai_tool(tool, strict=True)["function"] for tool in tools]
    for tool in converted:
        check_strict(tool["parameters"])
    results = [json.loads(message.content[0]["text"]) for message in messages]
    return [(tool["name"], tool["description"], tool["parameters"]) for tool in converted], results


async def pydantic_ai(server):
    requests = []

    def model(messages, info):
        requests.append((messages, info))
        return ModelResponse([ToolCallPart(TOOL, call) for call in CALLS] if len(requests) == 1 else [TextPart("done")])

    toolset = MCPToolset(StdioTransport(server, [], keep_alive=False), init_timeout=DEADLINE_SECONDS)
    await PydanticAgent(FunctionModel(model), toolsets=[toolset]).run("?")
    converted = []
    for tool in requests[0][1].function_tools:
        schema = OpenAIJsonSchemaTransformer(tool.parameters_json_schema, strict=True).walk()
        check_strict(schema)
        converted.append((tool.name, tool.description, schema))
    return converted, [part.content for part in requests[1][0][-1].parts]


anyio.run(main, *sys.argv[1:])
