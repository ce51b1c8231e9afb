# ==== warnings that quote the line
import warnings
warnings.warn("x")
warnings.warn("y", DeprecationWarning)
warnings.warn("z", FutureWarning, stacklevel=1)
# ==== warnings of the compiler
x = 1
print(x is 1, "\d")
# ==== warnings once, always, as errors
import warnings
for _ in range(3):
    warnings.warn("the same")
warnings.simplefilter("always")
for _ in range(2):
    warnings.warn("each")
warnings.simplefilter("error")
warnings.warn("at last")
# ==== a warning of a library
import re
print(re.split("[[a]b", "x"))
import datetime
print(datetime.datetime.utcfromtimestamp(0))
# ==== warnings from a function, by level
import warnings
def deprecated():
    warnings.warn("call the other", DeprecationWarning, stacklevel=2)
deprecated()
def outer():
    warnings.warn("too far", stacklevel=9)
outer()
# ==== a stack that is printed
import traceback
def f():
    traceback.print_stack()
    print(traceback.format_stack())
f()
# ==== a log record with its stack
import logging
logging.basicConfig(format="%(levelname)s %(filename)s %(lineno)d %(funcName)s %(message)s")
def f():
    logging.warning("here", stack_info=True)
f()
logging.getLogger("a.b").error("there", exc_info=ValueError("x"))
# ==== who calls
import inspect, sys
def f():
    return [(frame.function, frame.lineno, frame.code_context) for frame in inspect.stack()]
print(f())
print(sys._getframe().f_back, inspect.currentframe().f_back)
try:
    sys._getframe(1)
except ValueError as error:
    print(error)
# ==== the module itself
import __main__
print(sorted(vars(__main__)))
print(__name__, __file__, __spec__, __doc__, __package__, type(__loader__).__name__, __builtins__)
# ==== its docstring and annotations
"""What it is for."""
x: int = 3
print(__doc__, __annotations__)
# ==== a docstring's tests
def double(x):
    """
    >>> double(2)
    4
    >>> double(3)
    7
    """
    return 2 * x
import doctest
print(doctest.testmod())
# ==== a docstring's tests, of a class and the module
"""
>>> Point(1).x
2
"""
class Point:
    """
    >>> Point(1)
    Point(1)
    """
    def __init__(self, x):
        self.x = x
    def move(self):
        """
        >>> Point(1).move()
        1
        """
import doctest
doctest.testmod(verbose=True)
# ==== sources that are asked for
import inspect
def f(a, *b, c=1, **d) -> int:
    # A comment.
    return a
class C:
    def m(self): pass
print(inspect.getsource(f), inspect.getsource(C), inspect.getsource(C.m), inspect.getcomments(f), inspect.signature(f))
print(inspect.getsourcefile(f), inspect.getfile(C), inspect.getmodule(f), inspect.getsourcelines(C))
# ==== lines that are asked for
import linecache
print(repr(linecache.getline(__file__, 1)), len(linecache.getlines(__file__)))
print(sorted(name for name in linecache.cache if name == __file__))
# ==== an error that is not caught
def f(n):
    return 1 / n
def g():
    f(
        0
    )
g()
# ==== an error within an error
try:
    {}["a"]
except KeyError as error:
    raise RuntimeError("second") from error
# ==== errors in a group, with notes
errors = [ValueError("a"), ExceptionGroup("inner", [TypeError("b")])]
group = ExceptionGroup("several", errors)
group.add_note("a note")
raise group
# ==== an error in code that was made
exec(compile("def f():\n    return [][0]\n", "made.py", "exec"))
f()
# ==== an error in eval
eval("1 +")
# ==== a syntax error
def f(:
    pass
# ==== a syntax error at the end
print("never")
x = (1,
# ==== an indentation that does not fit
def f():
    x = 1
      y = 2
# ==== a tab and spaces
if True:
        x = 1
	y = 2
# ==== a name that is nearly right
import collections
words = collections.OrderedDict()
print(wrods)
# ==== an attribute that is nearly right
import math
print(math.sqroot(2))
# ==== a module that is not there
import nothing_of_that_name
# ==== a name that a module does not have
from collections import orderedDict
# ==== recursion without end
def f(n):
    return f(n + 1)
f(0)
# ==== exit with a number, a text, nothing
import sys
print("before")
sys.exit(3)
# ==== exit with a text
raise SystemExit("said at the end")
# ==== exit with something else
raise SystemExit([1, 2])
# ==== an exit within a thread
import sys, threading
def f():
    sys.exit(4)
thread = threading.Thread(target=f)
thread.start()
thread.join()
print("goes on")
# ==== an error in a thread
import threading
def f():
    raise ValueError("in a thread")
thread = threading.Thread(target=f, name="worker")
thread.start()
thread.join()
print(threading.current_thread().name, threading.active_count(), threading.main_thread() is threading.current_thread())
# ==== the names of threads
import threading
from concurrent.futures import ThreadPoolExecutor
threads = [threading.Thread(target=lambda: None) for _ in range(3)]
print([thread.name for thread in threads])
with ThreadPoolExecutor(2) as pool:
    print(pool.submit(lambda: threading.current_thread().name).result())
# ==== functions at the exit
import atexit, traceback
@atexit.register
def last():
    print("last")
@atexit.register
def broken():
    traceback.print_stack()
    raise ValueError("at the exit")
print("first")
# ==== an object's end
class Thing:
    def __init__(self, name): self.name = name
    def __del__(self): print("end of", self.name)
a = Thing("a")
_b = Thing("b")
def f():
    Thing("inner")
f()
cycle = Thing("cycle")
cycle.self = cycle
# ==== an object's end that fails
class Thing:
    def __del__(self): raise ValueError("at its end")
def f():
    Thing()
f()
print("goes on")
# ==== hooks for errors
import sys, threading
sys.excepthook = lambda kind, error, trace: print("hooked", kind.__name__, error, trace.tb_lineno, file=sys.stderr)
threading.excepthook = lambda args: print("hooked in a thread", args.exc_value)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start(); thread.join()
raise ValueError("x")
# ==== what shows values
import sys
sys.displayhook(42)
print(_)
del _
print("_" in dir(__builtins__))
# ==== an unhandled error of asyncio
import asyncio
async def fails():
    raise ValueError("in a task")
async def main():
    task = asyncio.create_task(fails(), name="failing")
    await asyncio.sleep(0)
    print(await asyncio.gather(task, return_exceptions=True))
    asyncio.create_task(fails(), name="forgotten")
    await asyncio.sleep(0)
asyncio.run(main())
# ==== a coroutine that nobody waits for
import asyncio
async def f(): pass
f()
async def main():
    f()
asyncio.run(main())
# ==== the names of tasks
import asyncio
async def main():
    print(asyncio.current_task().get_name(), asyncio.create_task(asyncio.sleep(0)).get_name())
asyncio.run(main())
# ==== a test suite
import unittest
class Tests(unittest.TestCase):
    def test_good(self): self.assertEqual(1 + 1, 2)
    def test_bad(self): self.assertEqual({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 3]})
    @unittest.skip("why not")
    def test_skipped(self): pass
    def test_error(self):
        with self.subTest(n=1): raise KeyError("x")
result = unittest.TextTestRunner(stream=open("/dev/null", "w")).run(unittest.defaultTestLoader.loadTestsFromTestCase(Tests))
print(result, *[text for _, text in result.failures + result.errors])
# ==== pickles of its own classes
import pickle
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
print(pickle.loads(pickle.dumps(Point(1))) == Point(1), pickle.dumps(Point)[:40], Point.__module__, Point.__qualname__)
# ==== processes that start its functions
import multiprocessing
def square(n): return n * n
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(square, range(5)))
    print(multiprocessing.current_process().name, multiprocessing.get_start_method())
# ==== processes that are spawned
import multiprocessing
def square(n, queue): queue.put((n * n, __name__, multiprocessing.current_process().name))
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=square, args=(3, queue))
    process.start()
    print(queue.get())
    process.join()
    print(process.exitcode)
# ==== a process that fails
import subprocess, sys
try:
    subprocess.run([sys.executable, "-c", "import sys; print('out'); sys.exit(2)"], check=True)
except subprocess.CalledProcessError as error:
    print(error.returncode)
subprocess.run(["/no/such/program"])
# ==== the command line
import argparse, sys
print(sys.argv, sys.orig_argv[1:], sys.executable)
parser = argparse.ArgumentParser(description="something")
parser.add_argument("--count", type=int, default=1, help="how many")
parser.add_argument("name")
parser.print_help()
parser.parse_args()
# ==== what is set
import sys
print(sys.flags, sys.getdefaultencoding(), sys.getfilesystemencoding(), sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors, sys.byteorder)
print(sys.stdin.encoding, sys.stdin.isatty(), sys.stdout.isatty(), sys.getswitchinterval(), sys.dont_write_bytecode, sys.flags.optimize, sys.warnoptions, sys._xoptions)
print(sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), sys.int_info, sys.hash_info.width, sys.get_int_max_str_digits(), sys.pycache_prefix, sys.platlibdir)
# ==== input at its end
try:
    input("? ")
except EOFError as error:
    print(repr(error))
import sys
print(repr(sys.stdin.read()), sys.stdin.readline() == "")
# ==== text that cannot be written
print("\udcff")
# ==== bytes and text on both streams
import sys
sys.stdout.buffer.write(b"bytes\xff\n")
sys.stdout.write("caf\u00e9 \U0001f600\n")
sys.stderr.write("error\n")
print("a", "b", sep="-", end="!\n", flush=True)
print("no end", end="")
# ==== streams that are closed
import sys
print("said")
sys.stdout.close()
print("never")
# ==== streams that are replaced
import io, sys, contextlib
with contextlib.redirect_stdout(io.StringIO()) as out:
    print("inner")
print(repr(out.getvalue()))
sys.stdout = io.StringIO()
print("lost")
# ==== names that are None
import sys
sys.stderr = None
raise ValueError("nobody hears")
# ==== regular expressions
import re
print(re.match(r"(?P<a>\w+) (?P<b>\d+)", "word 12").groupdict(), re.compile("a|b", re.I), re.sub(r"(?<=a)b", "c", "abab"))
re.compile("(a")
# ==== a format that is wrong
print("{:d}".format("x"))
# ==== floats and big numbers
print(0.1 + 0.2, 1e300 * 1e10, float("nan"), -0.0, 2**200, 10**20 / 3, round(0.5), round(1.5), f"{1/3:.20f}", 5 // -2, -5 % 3)
print(int("1" * 5000))
# ==== order of dictionaries and sets of numbers
print({3: 1, 1: 2, 2: 3}, {3, 1, 2}, sorted({"b": 1, "a": 2}), list(dict.fromkeys("abca")))
# ==== random numbers from a seed
import random
random.seed(42)
print(random.random(), random.randint(1, 100), random.sample(range(100), 3), random.gauss(0, 1), random.gauss(0, 1))
generator = random.Random("text")
print(generator.random(), generator.shuffle([1, 2, 3]), generator.getrandbits(70))
# ==== dates
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo
print(datetime(2024, 3, 31, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")).astimezone(timezone.utc), datetime.fromtimestamp(0))
import time
print(time.tzname, time.strftime("%A %d %B %Y", time.gmtime(0)), time.localtime(0).tm_hour)
# ==== locales
import locale
print(locale.getlocale(), locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), locale.localeconv()["decimal_point"])
# ==== classes
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, get_type_hints
@dataclass(frozen=True, slots=True)
class Point:
    x: int
    tags: list[str] = field(default_factory=list)
class Colour(Enum):
    RED = auto()
    BLUE = auto()
class Pair(NamedTuple):
    a: int
    b: str = "x"
print(Point(1), Colour.RED, list(Colour), Pair(1), get_type_hints(Point), repr(Point), Colour)
Point(1).x = 2
# ==== generators and context
import contextlib
@contextlib.contextmanager
def told():
    print("begin")
    try:
        yield 1
    finally:
        print("end")
with told() as n:
    print(n)
def numbers():
    try:
        yield 1
    except GeneratorExit:
        print("closed")
        raise
g = numbers()
next(g)
g.throw(ValueError("into it"))
# ==== abstract classes and protocols
from abc import ABC, abstractmethod
class Shape(ABC):
    @abstractmethod
    def area(self): ...
Shape()
# ==== a program that reads itself
print(open(__file__).read().count("open"))
import os
print(os.path.basename(__file__), os.getcwd(), os.listdir("."), oct(os.umask(0)), os.environ["HOME"])
# ==== a module of its own
open("helper.py", "w").write("VALUE = 1\ndef f():\n    raise ValueError('in the helper')\n")
import importlib, sys
sys.path.insert(0, ".")
import helper
print(helper.VALUE, helper.__name__)
open("helper.py", "w").write("VALUE = 2\nOTHER = 3\n")
importlib.invalidate_caches()
print(importlib.reload(helper).VALUE)
# ==== finding modules
import importlib.util, pkgutil, importlib.metadata
print(importlib.util.find_spec("json").origin, importlib.util.find_spec("nothing_at_all"), importlib.util.find_spec("os").name)
print(len([module for module in pkgutil.iter_modules() if module.name in ("json", "asyncio")]))
importlib.metadata.version("nothing-at-all")
# ==== tracing
import sys
seen = []
def trace(frame, event, argument):
    seen.append((event, frame.f_code.co_name, frame.f_lineno))
    return trace
def f(x):
    return x + 1
sys.settrace(trace)
f(1)
sys.settrace(None)
print(seen)
# ==== tracing that goes on to the end
import sys
def trace(frame, event, argument):
    if frame.f_code.co_filename == __file__ or "runner" in frame.f_code.co_filename:
        print(event, frame.f_code.co_name)
    return trace
sys.settrace(trace)
def f():
    return 1
f()
# ==== profiling
import cProfile, io, pstats
profile = cProfile.Profile()
profile.enable()
sum(range(10))
sorted([2, 1])
profile.disable()
print(sorted(name for _, _, name in pstats.Stats(profile, stream=io.StringIO()).stats))
# ==== times of a part
import timeit
print(timeit.timeit("pass", number=10) >= 0, timeit.default_timer.__name__)
# ==== objects that hold each other
import gc, weakref
class Node: pass
a, b = Node(), Node()
a.b, b.a = b, a
seen = weakref.ref(a, lambda _: print("gone"))
del a, b
print(gc.collect() > 0, seen(), gc.isenabled(), gc.get_threshold())
# ==== how many objects are found
import gc
print(gc.get_count()[0] >= 0, gc.garbage, gc.get_debug())
# ==== signals
import signal, os
def handler(number, frame):
    print("signal", signal.Signals(number).name, frame.f_code.co_name, frame.f_back)
signal.signal(signal.SIGUSR1, handler)
os.kill(os.getpid(), signal.SIGUSR1)
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGCHLD))
# ==== an interrupt
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True: pass
except KeyboardInterrupt as error:
    print(repr(error))
# ==== abrupt ends
import os
print("flushed", flush=True)
os._exit(5)
# ==== a fork
import os, sys
print("before", flush=True)
child = os.fork()
if child == 0:
    print("child")
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
# ==== output of a child in between
import subprocess, sys
print("one", flush=True)
subprocess.run(["echo", "two"])
print("three")
sys.stderr.write("four\n")
# ==== an interactive console
import code
console = code.InteractiveConsole({"x": 41})
console.push("x + 1")
console.push("y")
# ==== a debugger's commands
import bdb, pdb, io
debugger = pdb.Pdb(stdin=io.StringIO("where\np x\ncontinue\n"), nosigint=True)
def f():
    x = 1
    debugger.set_trace()
    return x
f()
# ==== a traceback with its locals
import traceback, sys
def f(secret):
    return secret["key"]
try:
    f({})
except KeyError:
    stack = traceback.TracebackException(*sys.exc_info(), capture_locals=True)
    print("".join(stack.format()))
    print(traceback.extract_tb(sys.exc_info()[2])[0].name, len(traceback.extract_tb(sys.exc_info()[2])))
# ==== the disassembly of a function
import dis
def f(x): return x + 1
dis.dis(f)
# ==== a syntax tree and tokens
import ast, io, tokenize
print(ast.dump(ast.parse("x = 1"), indent=1))
print([token.string for token in tokenize.generate_tokens(io.StringIO("a + 1\n").readline)])
# ==== codecs and lines
# -*- coding: latin-1 -*-
print(len("é"))
# ==== a comparison of what is not the same
assert 1 + 1 == 3, "arithmetic"
# ==== memory that is given back
import tracemalloc
tracemalloc.start()
x = [0] * 1000
print(tracemalloc.get_traced_memory()[0] > 8000, tracemalloc.get_traceback_limit(), tracemalloc.get_object_traceback(x))
# ==== json that is wrong
import json
print(json.dumps({"a": [1, None, "é"]}), json.loads("[1.0, true]"))
json.loads("{'a': 1}")
# ==== sockets and their addresses
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
connection, _ = server.accept()
connection.sendall(b"hello")
print(client.recv(5), socket.gethostbyname("localhost"))
# ==== a database
import sqlite3
database = sqlite3.connect(":memory:")
database.execute("create table t (a, b)")
database.executemany("insert into t values (?, ?)", [(1, "x"), (2, "y")])
print(database.execute("select * from t where a > 1").fetchall())
database.execute("select * from nothing")
# ==== limits of this process
import resource
print([resource.getrlimit(which) for which in (resource.RLIMIT_STACK, resource.RLIMIT_CORE, resource.RLIMIT_DATA, resource.RLIMIT_AS)])
