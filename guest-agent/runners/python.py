"""Runs one program in this warmed interpreter, as `python3 main.py` would; or the calls of a session.

argv: this file, the program's path. No frame of it is seen (`images/root/start.py`). Descriptors: 1000 tells what to run, 1001 takes
what is said to the agent; the words are in `guest-agent/src/runner.rs`.
"""
# Few imports: while VMs are booted for their run, each is time that a user waits for.
import _frozen_importlib_external
import _posixsubprocess
import _weakref
import atexit
import builtins
import gc
import os
import sys
import types

REQUEST, CONTROL = 1000, 1001

# Where a call lies.
CALL = "/run/calls/main.py"


def main():
    program = sys.argv[1]
    sys.orig_argv[:] = ["python3", program]
    # Children must not hold the agent's pipes open.
    os.set_inheritable(REQUEST, False)
    os.set_inheritable(CONTROL, False)
    runner_pid = os.getpid()
    keep_order()
    settled = Settled()
    # What programs of the agent's tell those that come after them in this interpreter.
    kept = {}
    os.write(CONTROL, b"R")
    while True:
        told = os.read(REQUEST, 32)
        if not told:
            os._exit(0)  # The agent does not need this interpreter.
        if is_last := told[:1] == b"G":
            os.close(REQUEST)
        if told[:1] == b"C":
            program = CALL
        if b"e" in told:
            apply_environment(read(program + ".env"))
        # A clone of this VM has the same generators until they are seeded anew, and its time.
        for start in settled.starts:
            start()
        if told[:1] == b"C":
            Session(program, settled).serve(told)
        code = run(program) if is_last else run(program, kept=kept)
        code = finish(code, settled, is_last)
        if not is_last:
            # Before the agent hears of it: a VM that is saved then would have it to do in every clone.
            settled = Settled()
        if os.getpid() == runner_pid:
            try:
                os.write(CONTROL, b"D%d\n" % code)
            except OSError:
                pass  # The program closed it; the exit says the same.
        if is_last:
            os._exit(code)


def keep_order():
    """Output goes out line by line, whole lines at once; what is begun goes out before another process can write."""
    sys.stdout.reconfigure(line_buffering=True)
    os.register_at_fork(before=flush_streams)
    for module, names in (
        (_posixsubprocess, ("fork_exec",)),
        (os, ("system", "posix_spawn", "posix_spawnp", "execv", "execve")),
    ):
        for name in names:
            setattr(module, name, flushing(getattr(module, name)))


def flushing(function):
    def flushed(*args, **kwargs):
        flush_streams()
        return function(*args, **kwargs)

    flushed.__name__ = flushed.__qualname__ = function.__name__
    flushed.__doc__ = function.__doc__
    return flushed


class Settled:
    """What is here now, as a part of the interpreter. In a clone each step that it takes first is translated anew, so what a
    program's begin and end need of the modules that are here is prepared."""

    def __init__(self):
        # The modules whose output needs no care.
        self.known = {name for name in sys.modules if not is_native(name)}
        self.thread_exits = thread_exits()
        self.flush = native_flush() if "ctypes" in sys.modules else None
        of_modules = (("random", lambda random: random.seed), ("numpy.random", numpy_seed), ("logging", logging_start))
        self.starts = [start_of(sys.modules[name]) for name, start_of in of_modules if name in sys.modules]
        gc.collect()
        # It is never garbage: later collections need not look at it.
        gc.freeze()


def native_flush():
    """What empties the buffers of C code."""
    import ctypes

    flush = ctypes.CDLL(None).fflush
    return lambda: flush(None)


def numpy_seed(random):
    """What seeds numpy's old generator. Its own means take 30 ms in a clone, so random bytes become its state where that is seen to
    lie where it is known to."""
    try:
        import ctypes

        random.seed()  # No number is left over, either.
        key = random.get_state()[1]
        address = random.mtrand._rand._bit_generator.ctypes.state_address
        if ctypes.string_at(address, key.nbytes) == key.tobytes():
            return lambda: ctypes.memmove(address, os.urandom(key.nbytes), key.nbytes)
    except Exception:
        pass  # It is another one.
    return random.seed


def logging_start(logging):
    """Its times count from when it was loaded."""
    import time

    return lambda: setattr(logging, "_startTime", time.time_ns())


def read(path):
    """All of a file, by as few steps as there are: each is translated anew in every VM."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    text = os.read(file, os.fstat(file).st_size)
    os.close(file)
    return text


def apply_environment(text):
    for variable in text.split(b"\0")[:-1]:
        name, _, value = variable.partition(b"=")
        os.environb[name] = value


class Session:
    """Calls, one after the other, in a module that stays."""

    def __init__(self, program, settled):
        import _ast
        import _signal
        import linecache

        self.ast, self.signal, self.sources = _ast, _signal, linecache.cache
        self.program, self.settled = program, settled
        self.runner_pid = os.getpid()
        self.had_input = False
        self.flush = None
        self.isdir = os.path.isdir
        self.parts = self.folders()
        self.next_part = next(self.parts)
        # As in an interpreter that somebody types into.
        self.module = types.ModuleType("__main__")
        self.module.__builtins__ = builtins
        sys.modules["__main__"] = self.module
        sys.argv[:] = [""]
        sys.path[0] = ""

    def serve(self, told):
        """Does not come back."""
        # What an interrupt does while a call runs; a call may change it.
        handler = self.signal.default_int_handler
        self.signal.signal(self.signal.SIGINT, lambda *_: None)
        os.write(CONTROL, b"B")
        while told:
            number = int(bytes(byte for byte in told if byte in b"0123456789"))
            self.give_input(b"i" in told)
            try:
                # One that comes while the handler is exchanged is that call's as well.
                try:
                    self.signal.signal(self.signal.SIGINT, handler)
                    code = self.call(number)
                finally:
                    handler = self.signal.signal(self.signal.SIGINT, lambda *_: None)
            except KeyboardInterrupt as error:
                code = report(error)
            self.flush_all()
            if os.getpid() != self.runner_pid:
                os._exit(code)
            os.write(CONTROL, b"D%d\n" % code)
            told = os.read(REQUEST, 32)
            if b"e" in told:
                apply_environment(read(self.program + ".env"))
        os._exit(0)

    @staticmethod
    def folders():
        """Where parts of a package layer are, in their order; at last nowhere."""
        yield "/packages/python"
        for number in range(2, 13):
            yield f"/packages-{number}/python"
        while True:
            yield ""

    def find_packages(self):
        """Those that were added since the call before: as a fresh interpreter has them, see sandbox-packages.pth."""
        while self.next_part and self.isdir(self.next_part):
            if self.next_part not in sys.path:
                import site

                site.addsitedir(self.next_part)
            self.next_part = next(self.parts)

    def call(self, number):
        """One call; its exit code."""
        self.find_packages()
        name, source = f"<call {number}>", read(self.program)
        text = source.decode("utf-8-sig", "replace")
        # Tracebacks and `inspect` look for it there. Without a time it is not compared with a file.
        self.sources[name] = (len(text), None, text.splitlines(True), name)
        try:
            ended = None
            tree = compile(source, name, "exec", 0x400, dont_inherit=True)  # PyCF_ONLY_AST, without ast.py
            is_shown = tree.body and isinstance(tree.body[-1], self.ast.Expr) and not text.rstrip().endswith(";")
            last = self.ast.Interactive([tree.body.pop()]) if is_shown else None
            exec(compile(tree, name, "exec", dont_inherit=True), self.module.__dict__)
            if last:
                exec(compile(last, name, "single", dont_inherit=True), self.module.__dict__)
            return 0
        except SystemExit as error:
            ended = error
        except BaseException as error:
            return report(error)
        # An interpreter that is told to end does so, and the next call has another.
        code = finish(report(ended), self.settled, is_last=True)
        if os.getpid() == self.runner_pid:
            os.write(CONTROL, b"X%d\n" % code)
        os._exit(code)

    def give_input(self, is_there):
        """What a call reads. Without any, it is at the end at once, and not where the last one stopped."""
        if not (is_there or self.had_input):
            return
        self.had_input = is_there
        file = os.open(self.program + ".stdin" if is_there else os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(file, 0)
        os.close(file)
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)

    def flush_all(self):
        flush_streams()
        if not self.flush and [name for name in set(sys.modules) - self.settled.known if is_native(name)]:
            self.flush = self.settled.flush or native_flush()
        if self.flush:
            self.flush()


def run(program, **given):
    """The program in a module of its own; its exit code."""
    module = types.ModuleType("__main__")
    loader = _frozen_importlib_external.SourceFileLoader("__main__", program)
    module.__dict__.update(
        __annotations__={}, __builtins__=builtins, __cached__=None, __file__=program, __loader__=loader, **given
    )
    sys.modules["__main__"] = module
    sys.argv[:] = [program]
    sys.path[0] = os.getcwd()
    try:
        exec(compile(read(program), program, "exec", dont_inherit=True), module.__dict__)
        return 0
    except BaseException as error:
        return report(error)


def report(error):
    """Says what ended the program, as the interpreter would; its exit code."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            # What does not fit a C long is -1, as in the interpreter.
            return error.code & 0xFF if -(2**63) <= error.code < 2**63 else 255
        print(error.code, file=sys.stderr)
        return 1
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException as fault:
        sys.__excepthook__(type(fault), fault, fault.__traceback__)
        sys.__excepthook__(type(error), error, error.__traceback__)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def finish(code, settled, is_last):
    """What an interpreter does when it ends, as far as a program can see it."""
    steps = (lambda: wait_for_threads(settled), run_exit_functions, drop_main, flush_streams)
    # The first two can be done once only.
    for step in steps if is_last else (*steps[2:], lambda: forget(sys.argv[0])):
        try:
            step()
        except BaseException as error:
            code = report(error) or code
    if [name for name in set(sys.modules) - settled.known if is_native(name)]:
        (settled.flush or native_flush())()
    return code


def wait_for_threads(settled):
    threading = sys.modules.get("threading")
    if threading and (threading.active_count() > 1 or thread_exits() != settled.thread_exits):
        threading._shutdown()


def thread_exits():
    """How many functions are called before threads are waited for. Those of modules that are here do nothing where none is."""
    return len(getattr(sys.modules.get("threading"), "_threading_atexits", ()))


def run_exit_functions():
    atexit._run_exitfuncs()


def drop_main():
    """Lets the program's objects go, so that their `__del__` runs, most of all for what it prints."""
    if len(sys._current_frames()) > 1:
        return  # A daemon thread still uses them.
    module = sys.modules.pop("__main__", None)
    if not isinstance(module, types.ModuleType):
        return
    alive = _weakref.ref(module)
    del module
    # As a cycle, with the globals that a destructor uses still there.
    gc.collect()
    module = alive()
    if module is None:
        return
    # Something outside holds it: name by name, as the interpreter does, the private ones first.
    names = [name for name in module.__dict__ if name != "__builtins__"]
    for name in sorted(names, key=lambda name: not (name[:1] == "_" and name[1:2] != "_")):
        module.__dict__[name] = None
    gc.collect()


def forget(program):
    """What was kept of a program that has ended, by its name, would be taken for that of the next one."""
    for module, tables in (("linecache", ("cache",)), ("inspect", ("modulesbyfile", "_filesbymodname"))):
        for table in tables if module in sys.modules else ():
            known = getattr(sys.modules[module], table)
            for key in [key for key, value in known.items() if program in (key, value)]:
                del known[key]


def flush_streams():
    for stream in {id(s): s for s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}.values():
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # None, closed, or something of the program's own.


def is_native(name):
    """Whether C code with buffers of its own may have written. Those of Python's own that programs meet here have none."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return name == "ctypes"
    return (getattr(sys.modules.get(name), "__file__", None) or "").endswith(".so")


main()
