"""Runs one program in this warmed interpreter, as `python3 main.py` would.

argv: this file, the program's path. Descriptors: 1000 tells to go, 1001 takes what is said to the agent.
"""
# Few imports: while VMs are booted for their run, each is time that a user waits for.
import builtins
import gc
import os
import sys
import types

REQUEST, CONTROL = 1000, 1001


def main():
    program = sys.argv[1]
    # Children must not hold the agent's pipes open.
    os.set_inheritable(REQUEST, False)
    os.set_inheritable(CONTROL, False)
    runner_pid = os.getpid()
    warm_up()
    known = set(sys.modules)
    os.write(CONTROL, b"R")
    if not os.read(REQUEST, 2):
        os._exit(0)  # The agent does not need this interpreter.
    os.close(REQUEST)
    apply_environment(os.path.join(os.path.dirname(program), "env"))
    if "random" in sys.modules:
        # A clone of this VM has the same generator state until it is seeded anew.
        sys.modules["random"].seed()
    code = run(program)
    code = finish(code, known)
    if os.getpid() == runner_pid:
        try:
            os.write(CONTROL, b"D%d\n" % code)
        except OSError:
            pass  # The program closed it; the exit says the same.
    os._exit(code)


def warm_up():
    """Goes once through what every program goes through, so that no program is the first."""
    exec(compile("try:\n 1/0\nexcept ZeroDivisionError as e: f'{e!r}'", "<warm-up>", "exec"), {})
    gc.collect()
    # What is here now is never garbage: later collections need not look at it.
    gc.freeze()


def apply_environment(path):
    with open(path, "rb") as file:
        for variable in file.read().split(b"\0")[:-1]:
            name, _, value = variable.partition(b"=")
            os.environb[name] = value


def run(program):
    """The program in a module of its own; its exit code."""
    module = types.ModuleType("__main__")
    module.__file__ = program
    module.__builtins__ = builtins
    sys.modules["__main__"] = module
    sys.argv[:] = [program]
    sys.path[0] = os.getcwd()
    try:
        with open(program, "rb") as file:
            source = file.read()
        exec(compile(source, program, "exec", dont_inherit=True), module.__dict__)
        return 0
    except BaseException as error:
        return report(error)


def report(error):
    """Says what ended the program, as the interpreter would; its exit code."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    # The first frame is this runner's.
    error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException as fault:
        sys.__excepthook__(type(fault), fault, fault.__traceback__)
        sys.__excepthook__(type(error), error, error.__traceback__)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def finish(code, known):
    """What an interpreter does when it ends, as far as a program can see it."""
    for step in (wait_for_threads, run_exit_functions, drop_globals, flush_streams):
        try:
            step()
        except BaseException as error:
            code = report(error) or code
    if any(is_native(name) for name in set(sys.modules) - known):
        import ctypes

        ctypes.CDLL(None).fflush(None)
    return code


def wait_for_threads():
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()


def run_exit_functions():
    import atexit

    atexit._run_exitfuncs()


def drop_globals():
    # Objects with a `__del__` expect it to be called, most of all for what it prints.
    module = sys.modules.get("__main__")
    if isinstance(module, types.ModuleType):
        for name in [name for name in module.__dict__ if name != "__builtins__"]:
            module.__dict__[name] = None
    gc.collect()


def flush_streams():
    for stream in {id(s): s for s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}.values():
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def is_native(name):
    """Whether C code with buffers of its own may have written."""
    return (getattr(sys.modules.get(name), "__file__", None) or "").endswith(".so") or name == "ctypes"


main()
